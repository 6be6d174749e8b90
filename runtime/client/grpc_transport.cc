// The transport over gRPC.
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/client/append_stream.h"
#include "runtime/client/cancel_watch.h"
#include "runtime/client/direct_append.h"
#include "runtime/client/step_stream.h"
#include "runtime/client/transport.h"
#include "runtime/rpc/annulus.grpc.pb.h"
#include "runtime/rpc/health.grpc.pb.h"
#include "runtime/rpc/protocol/channel.h"
#include "runtime/rpc/protocol/codec.h"
#include "runtime/rpc/protocol/steps.h"
#include "runtime/rpc/protocol/streams.h"

namespace annulus {
namespace {

constexpr absl::Duration kReconnectWait = absl::Milliseconds(500);

class GrpcTransport final : public Transport {
 public:
  explicit GrpcTransport(const ClientOptions& options)
      : options_(options),
        channel_(MakeChannel(options.endpoint)),
        stub_(v1::Annulus::NewStub(channel_)),
        steps_(channel_),
        direct_(channel_, options.chunk_bytes) {}

  // Waits until the service says that it serves.
  absl::Status WaitForService();

  absl::StatusOr<ContextInfo> CreateContext(const ContextSpec& spec,
                                            const Attempt& attempt) override {
    return Unary<ContextInfo>(&v1::Annulus::Stub::CreateContext, spec, attempt);
  }

  absl::StatusOr<AppendResult> Append(const AppendRequest& request,
                                      const Attempt& attempt) override {
    ANNULUS_RETURN_IF_ERROR(AwaitConnection(attempt));
    absl::StatusOr<AppendResult> result =
        options_.upload == Upload::kDirect
            ? direct_.Append(request, attempt)
            : StreamAppend(channel_, request, options_.chunk_bytes, attempt);
    if (!result.ok()) return Named(result.status());
    return result;
  }

  absl::StatusOr<AttendResult> Attend(const AttendRequest& request,
                                      const Attempt& attempt) override;

  StepResults Step(absl::Span<const StepRequest> requests, const Attempt& attempt) override {
    if (absl::Status connected = AwaitConnection(attempt); !connected.ok()) {
      return AllFail(requests.size(), connected);
    }
    StepResults results = steps_.Step(requests, attempt);
    for (absl::StatusOr<StepResult>& result : results) {
      if (absl::IsUnavailable(result.status())) result = Named(result.status());
    }
    return results;
  }

  absl::StatusOr<ContextInfo> Fork(const ForkRequest& request, const Attempt& attempt) override {
    return Unary<ContextInfo>(&v1::Annulus::Stub::Fork, request, attempt);
  }

  absl::StatusOr<ContextInfo> Truncate(const TruncateRequest& request,
                                       const Attempt& attempt) override {
    return Unary<ContextInfo>(&v1::Annulus::Stub::Truncate, request, attempt);
  }

  absl::Status Release(ContextId context, const Attempt& attempt) override {
    return Unary<Nothing>(&v1::Annulus::Stub::Release, ContextRef{context}, attempt).status();
  }

  std::vector<absl::Status> KeepAlive(absl::Span<const ContextId> contexts,
                                      const Attempt& attempt) override {
    v1::KeepAliveRequest request;
    request.mutable_contexts()->Assign(contexts.begin(), contexts.end());
    v1::KeepAliveReply reply;
    const absl::Status status = Call(&v1::Annulus::Stub::KeepAlive, request, &reply, attempt);
    if (!status.ok()) return std::vector<absl::Status>(contexts.size(), status);
    return FromProto(reply, contexts.size());
  }

  absl::StatusOr<ContextInfo> Describe(ContextId context, const Attempt& attempt) override {
    return Unary<ContextInfo>(&v1::Annulus::Stub::Describe, ContextRef{context}, attempt);
  }

  absl::StatusOr<std::vector<ContextInfo>> List(const ListRequest& request,
                                                const Attempt& attempt) override {
    ANNULUS_ASSIGN_OR_RETURN(ContextList list,
                             Unary<ContextList>(&v1::Annulus::Stub::List, request, attempt));
    return std::move(list.contexts);
  }

  absl::StatusOr<ClusterStatus> Status(const Attempt& attempt) override {
    return Unary<ClusterStatus>(&v1::Annulus::Stub::Status, Nothing(), attempt);
  }

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
  template <typename Reply, typename Request>
  using Method = grpc::Status (v1::Annulus::Stub::*)(grpc::ClientContext*, const Request&, Reply*);

  template <typename Result, typename Reply, typename Request, typename Value>
  absl::StatusOr<Result> Unary(Method<Reply, Request> method, const Value& value,
                               const Attempt& attempt) {
    Request request;
    ANNULUS_RETURN_IF_ERROR(ToProto(value, &request));
    Reply reply;
    ANNULUS_RETURN_IF_ERROR(Call(method, request, &reply, attempt));
    return ReplyOf<Result>(reply);
  }

  template <typename Reply, typename Request>
  absl::Status Call(Method<Reply, Request> method, const Request& request, Reply* reply,
                    const Attempt& attempt) {
    ANNULUS_RETURN_IF_ERROR(AwaitConnection(attempt));
    grpc::ClientContext rpc;
    SetUpCall(attempt.deadline, &rpc);
    const CancelWatch watch(attempt.cancel, [&rpc] { rpc.TryCancel(); });
    return Named(FromGrpc((stub_.get()->*method)(&rpc, request, reply)));
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

  // A failed connection is worth the name of its endpoint.
  absl::Status Named(const absl::Status& status) const {
    if (!absl::IsUnavailable(status)) return status;
    return absl::UnavailableError(absl::StrCat(options_.endpoint, ": ", status.message()));
  }

  const ClientOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Annulus::Stub> stub_;
  StepStream steps_;
  DirectAppends direct_;
};

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
    SetUpCall(deadline, &rpc);
    const grpc::Status status = stub->Check(&rpc, request, &reply);
    if (status.ok()) {
      if (reply.status() == grpc::health::v1::HealthCheckResponse::SERVING) {
        return absl::OkStatus();
      }
      last = "it answers that it is not serving";
    } else if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) {
      return FromGrpc(status);  // another version of the protocol: waiting helps nobody
    } else if (status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED) {
      last = status.error_message();
    }
    absl::SleepFor(std::min(absl::Milliseconds(50), deadline - absl::Now()));
  } while (absl::Now() < deadline);
  return absl::UnavailableError(
      absl::StrCat("no Annulus service at \"", options_.endpoint, "\" within ",
                   absl::FormatDuration(options_.connect_timeout), ": ", last));
}

absl::StatusOr<AttendResult> GrpcTransport::Attend(const AttendRequest& request,
                                                   const Attempt& attempt) {
  ANNULUS_ASSIGN_OR_RETURN(const TensorShape q, Streamable(request.q, "q"));
  ANNULUS_RETURN_IF_ERROR(AwaitConnection(attempt));
  v1::AttendPart part;
  v1::AttendHeader* header = part.mutable_header();
  ANNULUS_RETURN_IF_ERROR(ToProto(request, header));
  ToProto(request.q, header->mutable_q());

  grpc::ClientContext rpc;
  SetUpCall(attempt.deadline, &rpc);
  const CancelWatch watch(attempt.cancel, [&rpc] { rpc.TryCancel(); });
  // The metadata leaves with the header, and the stream's end with the last data.
  rpc.set_initial_metadata_corked(true);
  const auto stream = stub_->Attend(&rpc);
  const bool in_header = q.bytes <= kHeaderDataBytesMax;
  const bool open = in_header || stream->Write(part);
  int64_t left = q.bytes;
  ChunkWriter writer(in_header ? q.bytes : options_.chunk_bytes, [&](std::string* data) {
    left -= static_cast<int64_t>(data->size());
    (in_header ? header->mutable_data() : part.mutable_data())->swap(*data);
    grpc::WriteOptions last;
    if (left == 0) last.set_last_message();
    return stream->Write(part, last);
  });
  (void)(open && writer.Write(request.q) && writer.Flush());  // the stream's end says what failed

  AttendReplyReader reader(q.tokens, q.heads);
  absl::Status read;
  v1::AttendReplyPart reply;
  // The stream is read to its end even after a bad message: its status comes last.
  while (stream->Read(&reply)) {
    if (!read.ok()) continue;
    read = reader.Add(reply);
    if (!read.ok()) rpc.TryCancel();
  }
  const grpc::Status finish = stream->Finish();
  ANNULUS_RETURN_IF_ERROR(read);
  ANNULUS_RETURN_IF_ERROR(Named(FromGrpc(finish)));
  return reader.Finish();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Transport>> MakeGrpcTransport(const ClientOptions& options) {
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
  auto transport = std::make_unique<GrpcTransport>(options);
  ANNULUS_RETURN_IF_ERROR(transport->WaitForService());
  return transport;
}

}  // namespace annulus
