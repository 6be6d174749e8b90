// The transport over gRPC.
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/retry_hint.h"
#include "base/status.h"
#include "runtime/client/append_stream.h"
#include "runtime/client/cancel_watch.h"
#include "runtime/client/direct_append.h"
#include "runtime/client/read_reply.h"
#include "runtime/client/select_stream.h"
#include "runtime/client/step_connections.h"
#include "runtime/client/transport.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/client_identity.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/protocol/public/health.grpc.pb.h"
#include "runtime/protocol/public/index_queries.h"
#include "runtime/protocol/public/key_lists.h"
#include "runtime/protocol/public/step_batch.h"
#include "runtime/protocol/public/tensor_stream.h"
#include "runtime/protocol/public/unary.h"

namespace annulus {
namespace {

constexpr absl::Duration kReconnectWait = absl::Milliseconds(500);

class GrpcTransport final : public Transport {
 public:
  GrpcTransport(const ClientOptions& options, std::unique_ptr<ClientIdentity> identity)
      : options_(options),
        identity_(std::move(identity)),
        token_(identity_->token()),
        channel_(identity_->ChannelTo(options.endpoint)),
        stub_(v1::Annulus::NewStub(channel_)),
        steps_(channel_, token_),
        direct_(channel_, identity_.get(), options.chunk_bytes) {}

  // Waits until the service says that it serves.
  absl::Status WaitForService();
  std::string WhyNotConnected() const;

  ConnectionState connection() const override {
    switch (channel_->GetState(/*try_to_connect=*/false)) {
      case GRPC_CHANNEL_READY:
        return ConnectionState::kReady;
      case GRPC_CHANNEL_IDLE:
      case GRPC_CHANNEL_CONNECTING:
        return ConnectionState::kConnecting;
      default:
        return ConnectionState::kDown;
    }
  }

 private:
  absl::StatusOr<AnyAnswer> Answer(const AnyRequest& request, const Attempt& attempt) override {
    return AnswerAny(request, [&](const auto& typed) -> absl::StatusOr<AnyAnswer> {
      ANNULUS_RETURN_IF_ERROR(AwaitConnection(attempt));
      const int64_t token = TokenVersion();
      auto answer = Do(typed, attempt);
      if (!answer.ok()) return Told(answer.status(), token);
      return answer;
    });
  }

  template <typename Request>
  absl::StatusOr<AnswerTo<Request>> Do(const Request& request, const Attempt& attempt) {
    grpc::ClientContext rpc;
    SetUpCall(attempt.deadline, &rpc, token_);
    SetUpTrace(attempt.traceparent, &rpc);
    const CancelWatch watch(attempt.cancel, [&rpc] { rpc.TryCancel(); });
    std::string reply;
    ANNULUS_RETURN_IF_ERROR(FromGrpc(
        CallUnary(channel_.get(), PathOf(CallOf<Request>().name), &rpc, BytesOf(request), &reply)));
    return ReplyOf<AnswerTo<Request>>(reply);
  }

  absl::StatusOr<AppendResult> Do(const AppendRequest& request, const Attempt& attempt) {
    return options_.upload == Upload::kDirect
               ? direct_.Append(request, attempt)
               : StreamAppend(channel_, token_, request, options_.chunk_bytes, attempt);
  }

  absl::StatusOr<AppendResult> Do(const DirectAppend& request, const Attempt& attempt) {
    return absl::UnimplementedError("AppendDirect: on its own; expected as a part of an Append");
  }

  absl::StatusOr<AttendResult> Do(const AttendRequest& request, const Attempt& attempt);

  absl::StatusOr<SelectResult> Do(const SelectRequest& request, const Attempt& attempt) {
    return StreamSelect(channel_, token_, request, options_.chunk_bytes, attempt);
  }

  absl::StatusOr<CompressResult> Do(const CompressRequest& request, const Attempt& attempt) {
    return StreamCompress(channel_, token_, request, options_.chunk_bytes, attempt);
  }

  absl::StatusOr<StepResults> Do(const StepsRequest& request, const Attempt& attempt) {
    const int64_t token = TokenVersion();
    StepResults results = steps_.Step(request.steps, attempt);
    for (absl::StatusOr<StepResult>& result : results) {
      if (!result.ok()) result = Told(result.status(), token);
    }
    return results;
  }

  // gRPC brings a broken connection back only while somebody waits for it, else every 5 s: each
  // attempt waits for a moment. A call without a connection would end with the deadline, and hide
  // that the service is away.
  absl::Status AwaitConnection(const Attempt& attempt) const {
    const absl::Time until = std::min(attempt.deadline, absl::Now() + kReconnectWait);
    if (channel_->GetState(/*try_to_connect=*/true) == GRPC_CHANNEL_READY ||
        channel_->WaitForConnected(absl::ToChronoTime(until))) {
      return absl::OkStatus();
    }
    return Named(absl::UnavailableError("not connected"));
  }

  int64_t TokenVersion() const { return token_ == nullptr ? 0 : token_->version(); }

  // How a failure reads for the caller. A call whose token was refused is worth another try if
  // there is a newer one by now.
  absl::Status Told(const absl::Status& status, int64_t token) const {
    if (!absl::IsUnauthenticated(status) || token_ == nullptr) return Named(status);
    token_->Refresh();
    return token_->version() == token ? status : WithRetryAfter(status, kReconnectWait / 100);
  }

  // A failed connection is worth the name of its endpoint.
  absl::Status Named(const absl::Status& status) const {
    if (!absl::IsUnavailable(status)) return status;
    absl::Status named =
        absl::UnavailableError(absl::StrCat(options_.endpoint, ": ", status.message()));
    const absl::optional<absl::Duration> wait = RetryAfter(status);
    return wait.has_value() ? WithRetryAfter(std::move(named), *wait) : named;
  }

  const ClientOptions options_;
  const std::unique_ptr<ClientIdentity> identity_;
  TokenFile* const token_;  // may be null
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Annulus::Stub> stub_;
  StepConnections steps_;
  DirectAppends direct_;
};

// A call that waits for a connection does not say why there is none; one that does not wait does.
std::string GrpcTransport::WhyNotConnected() const {
  constexpr const char* kNoAnswer = "no answer";
  if (channel_->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_READY) return kNoAnswer;
  grpc::ClientContext rpc;
  SetUpCall(absl::Now() + kReconnectWait, &rpc);
  grpc::health::v1::HealthCheckResponse reply;
  const grpc::Status status = grpc::health::v1::Health::NewStub(channel_)->Check(
      &rpc, grpc::health::v1::HealthCheckRequest(), &reply);
  return status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED ? kNoAnswer
                                                                    : status.error_message();
}

absl::Status GrpcTransport::WaitForService() {
  const absl::Time deadline = absl::Now() + options_.connect_timeout;
  const auto stub = grpc::health::v1::Health::NewStub(channel_);
  std::string last = "no answer";
  do {
    grpc::health::v1::HealthCheckRequest request;
    request.set_service("annulus.v1.Annulus");
    grpc::health::v1::HealthCheckResponse reply;
    grpc::ClientContext rpc;
    rpc.set_wait_for_ready(true);
    SetUpCall(deadline, &rpc, token_, /*first=*/true);
    const grpc::Status status = stub->Check(&rpc, request, &reply);
    if (status.ok()) {
      if (reply.status() == grpc::health::v1::HealthCheckResponse::SERVING) {
        return absl::OkStatus();
      }
      last = "it answers that it is not serving";
    } else if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION ||
               status.error_code() == grpc::StatusCode::UNAUTHENTICATED) {
      // Another version of the protocol, or a token that is not good: waiting helps nobody.
      return FromGrpc(status);
    } else if (status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED) {
      last = status.error_message();
    } else {
      last = WhyNotConnected();
    }
    absl::SleepFor(std::min(absl::Milliseconds(50), deadline - absl::Now()));
  } while (absl::Now() < deadline);
  // A server does not say whom it does not trust.
  const bool cut = !options_.tls_ca.empty() && absl::StrContains(last, "Socket closed");
  return absl::UnavailableError(
      absl::StrCat("no Annulus service at \"", options_.endpoint, "\" within ",
                   absl::FormatDuration(options_.connect_timeout), ": ", last,
                   cut ? "; it may expect a certificate of this client that it trusts" : ""));
}

absl::StatusOr<AttendResult> GrpcTransport::Do(const AttendRequest& request,
                                               const Attempt& attempt) {
  ANNULUS_ASSIGN_OR_RETURN(const TensorShape q, Streamable(request.q, "q"));
  v1::AttendPart part;
  v1::AttendHeader* header = part.mutable_header();
  ANNULUS_RETURN_IF_ERROR(ToProto(request, header));
  ToProto(request.q, header->mutable_q());
  ToProto(request.lists, /*with_data=*/false, header->mutable_lists());
  int64_t bytes = q.bytes + BytesOf(request.lists);
  const TensorView& index = request.index.q;
  if (index.tokens > 0) {
    ANNULUS_ASSIGN_OR_RETURN(const TensorShape shape, Streamable(index, "index.q"));
    ToProto(request.index, header->mutable_index());
    bytes += shape.bytes;
  }

  grpc::ClientContext rpc;
  SetUpCall(attempt.deadline, &rpc, token_);
  SetUpTrace(attempt.traceparent, &rpc);
  const CancelWatch watch(attempt.cancel, [&rpc] { rpc.TryCancel(); });
  // The metadata leaves with the header, and the stream's end with the last data.
  rpc.set_initial_metadata_corked(true);
  const auto stream = stub_->Attend(&rpc);
  const bool in_header = bytes <= kHeaderDataBytesMax;
  const bool open = in_header || stream->Write(part);
  int64_t left = bytes;
  ChunkWriter writer(in_header ? bytes : options_.chunk_bytes, [&](std::string* data) {
    left -= static_cast<int64_t>(data->size());
    (in_header ? header->mutable_data() : part.mutable_data())->swap(*data);
    grpc::WriteOptions last;
    if (left == 0) last.set_last_message();
    return stream->Write(part, last);
  });
  const auto write_more = [&] {
    if (index.tokens > 0 && !writer.Write(index)) return false;
    const auto data = DataOf(request.lists);
    return std::all_of(data.begin(), data.end(), [&](auto bytes) { return writer.Write(bytes); });
  };
  // The stream's end says what failed.
  (void)(open && writer.Write(request.q) && write_more() && writer.Flush());

  AttendReplyReader reader(q.tokens, q.heads);
  return ReadReply(stream.get(), &rpc, &reader);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Transport>> MakeGrpcTransport(const ClientOptions& options) {
  ANNULUS_RETURN_IF_ERROR(CheckNotForked());
  ANNULUS_RETURN_IF_ERROR(CheckHostPort("endpoint", options.endpoint));
  constexpr int64_t kChunkBytesMax = kMessageBytesMax - kMessageRoomBytes;
  if (options.chunk_bytes < 1 || options.chunk_bytes > kChunkBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk_bytes: ", options.chunk_bytes, "; expected 1 to ", kChunkBytesMax));
  }
  if (options.connect_timeout <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("connect_timeout: ", absl::FormatDuration(options.connect_timeout),
                     "; expected more than 0"));
  }
  if (options.upload != Upload::kDirect && options.upload != Upload::kRelay) {
    return absl::InvalidArgumentError(
        absl::StrCat("upload: ", static_cast<int>(options.upload), "; expected kDirect or kRelay"));
  }
  ANNULUS_ASSIGN_OR_RETURN(
      std::unique_ptr<ClientIdentity> identity,
      ClientIdentity::Open({.tls = {options.tls_ca, options.tls_cert, options.tls_key},
                            .token_file = options.token_file}));
  auto transport = std::make_unique<GrpcTransport>(options, std::move(identity));
  ANNULUS_RETURN_IF_ERROR(transport->WaitForService());
  return transport;
}

}  // namespace annulus
