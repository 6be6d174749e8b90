#include "runtime/client/client.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/rpc/annulus.grpc.pb.h"
#include "runtime/rpc/health.grpc.pb.h"
#include "runtime/rpc/protocol/channel.h"
#include "runtime/rpc/protocol/codec.h"
#include "runtime/rpc/protocol/streams.h"

namespace annulus {
namespace {

// A piece of an upload is what the service commits at once: large enough to hide a round trip to
// the workers, small enough for the service to keep many callers' pieces.
constexpr int64_t kPieceBytes = 4 << 20;
constexpr int64_t kPieceAlignTokens = 64;  // whole blocks where a piece has that many tokens

// Whether the view is one that can be streamed; what it must be for the service, the service says.
absl::StatusOr<TensorShape> Streamable(const TensorView& view, absl::string_view field,
                                       v1::TensorShape* message) {
  ToProto(view, message);
  ANNULUS_ASSIGN_OR_RETURN(TensorShape shape, FromProto(*message, field));
  if (view.data == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".data is null; expected ", shape.bytes,
                                                   " bytes or their strided rows"));
  }
  return shape;
}

// proto3 text is UTF-8 and a message with anything else never arrives; both fields are ASCII.
absl::Status CheckAscii(absl::string_view field, absl::string_view text) {
  const auto* odd = std::find_if(text.begin(), text.end(),
                                 [](char c) { return static_cast<unsigned char>(c) >= 0x80; });
  if (odd == text.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " has a byte beyond ASCII at position ",
                                                 odd - text.begin(), "; expected ASCII text"));
}

int64_t PieceTokens(int64_t tokens, int64_t token_bytes) {
  int64_t count = std::max<int64_t>(1, kPieceBytes / token_bytes);
  if (count > kPieceAlignTokens) count -= count % kPieceAlignTokens;
  return std::min(count, tokens);
}

class GrpcClient final : public Client {
 public:
  explicit GrpcClient(const ClientOptions& options)
      : options_(options),
        channel_(MakeChannel(options.endpoint)),
        stub_(v1::Annulus::NewStub(channel_)) {}

  // Waits until the service says that it serves.
  absl::Status WaitForService();

  absl::StatusOr<ContextInfo> CreateContext(const ContextSpec& spec,
                                            const CallOptions& call) override {
    v1::ContextSpec request;
    ToProto(spec, &request);
    return Unary<ContextInfo, v1::ContextInfo>(&v1::Annulus::Stub::CreateContext, request, call);
  }

  absl::StatusOr<AppendResult> Append(const AppendRequest& request,
                                      const CallOptions& call) override;
  absl::StatusOr<AttendResult> Attend(const AttendRequest& request,
                                      const CallOptions& call) override;

  absl::Status Release(ContextId context, const CallOptions& call) override {
    v1::ContextRef request;
    request.set_context(context);
    v1::ReleaseResult reply;
    grpc::ClientContext rpc;
    SetDeadline(absl::Now() + call.timeout, &rpc);
    return Told(stub_->Release(&rpc, request, &reply));
  }

  absl::StatusOr<ContextInfo> Describe(ContextId context, const CallOptions& call) override {
    v1::ContextRef request;
    request.set_context(context);
    return Unary<ContextInfo, v1::ContextInfo>(&v1::Annulus::Stub::Describe, request, call);
  }

  absl::StatusOr<ClusterStatus> Status(const CallOptions& call) override {
    return Unary<ClusterStatus, v1::ClusterStatus>(&v1::Annulus::Stub::Status, v1::StatusRequest(),
                                                   call);
  }

 private:
  template <typename Result, typename Reply, typename Request>
  absl::StatusOr<Result> Unary(grpc::Status (v1::Annulus::Stub::*method)(grpc::ClientContext*,
                                                                         const Request&, Reply*),
                               const Request& request, const CallOptions& call) {
    Reply reply;
    grpc::ClientContext rpc;
    SetDeadline(absl::Now() + call.timeout, &rpc);
    ANNULUS_RETURN_IF_ERROR(Told((stub_.get()->*method)(&rpc, request, &reply)));
    return FromProto(reply);
  }

  // A failed connection is worth the name of its endpoint.
  absl::Status Told(const grpc::Status& status) const {
    const absl::Status told = FromGrpc(status);
    if (!absl::IsUnavailable(told)) return told;
    return absl::UnavailableError(absl::StrCat(options_.endpoint, ": ", told.message()));
  }

  const ClientOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Annulus::Stub> stub_;
};

absl::Status GrpcClient::WaitForService() {
  const absl::Time deadline = absl::Now() + options_.connect_timeout;
  const auto stub = grpc::health::v1::Health::NewStub(channel_);
  std::string last = "no answer";
  do {
    grpc::health::v1::HealthCheckRequest request;
    request.set_service("annulus.v1.Annulus");
    grpc::health::v1::HealthCheckResponse reply;
    grpc::ClientContext rpc;
    rpc.set_wait_for_ready(true);
    SetDeadline(deadline, &rpc);
    const grpc::Status status = stub->Check(&rpc, request, &reply);
    if (status.ok()) {
      if (reply.status() == grpc::health::v1::HealthCheckResponse::SERVING) {
        return absl::OkStatus();
      }
      last = "it answers that it is not serving";
    } else if (status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED) {
      last = status.error_message();
    }
    absl::SleepFor(std::min(absl::Milliseconds(50), deadline - absl::Now()));
  } while (absl::Now() < deadline);
  return absl::UnavailableError(
      absl::StrCat("no Annulus service at \"", options_.endpoint, "\" within ",
                   absl::FormatDuration(options_.connect_timeout), ": ", last));
}

absl::StatusOr<AppendResult> GrpcClient::Append(const AppendRequest& request,
                                                const CallOptions& call) {
  v1::AppendPart part;
  v1::AppendHeader* header = part.mutable_header();
  header->set_context(request.context);
  header->set_layer(request.layer);
  header->set_start(request.start);
  ANNULUS_ASSIGN_OR_RETURN(const TensorShape k, Streamable(request.k, "k", header->mutable_k()));
  const bool has_v = request.v.tokens != 0;
  TensorShape v;
  if (has_v) {
    ANNULUS_ASSIGN_OR_RETURN(v, Streamable(request.v, "v", header->mutable_v()));
    if (v.tokens != k.tokens) {
      return absl::InvalidArgumentError(
          absl::StrCat("v.tokens is ", v.tokens, "; expected k.tokens, ", k.tokens, ", or 0"));
    }
  }
  const int64_t piece = PieceTokens(k.tokens, k.row_bytes() + (has_v ? v.row_bytes() : 0));
  header->set_piece_tokens(piece);

  v1::AppendResult reply;
  grpc::ClientContext rpc;
  SetDeadline(absl::Now() + call.timeout, &rpc);
  const auto stream = stub_->Append(&rpc, &reply);
  bool open = stream->Write(part);
  int64_t sent_bytes = 0;
  ChunkWriter writer(options_.chunk_bytes, [&](std::string* data) {
    sent_bytes += static_cast<int64_t>(data->size());
    part.mutable_data()->swap(*data);
    if (!stream->Write(part)) return false;
    if (call.progress) call.progress(sent_bytes, k.bytes + v.bytes);
    return true;
  });
  for (int64_t first = 0; open && first < k.tokens; first += piece) {
    const int64_t count = std::min(piece, k.tokens - first);
    open = writer.Write(request.k.Tokens(first, count)) &&
           (!has_v || writer.Write(request.v.Tokens(first, count)));
  }
  if (open && writer.Flush()) stream->WritesDone();
  ANNULUS_RETURN_IF_ERROR(Told(stream->Finish()));
  return AppendResult{.epoch = reply.epoch(), .tokens = reply.tokens()};
}

absl::StatusOr<AttendResult> GrpcClient::Attend(const AttendRequest& request,
                                                const CallOptions& call) {
  ANNULUS_RETURN_IF_ERROR(CheckAscii("pattern", request.pattern));
  ANNULUS_RETURN_IF_ERROR(CheckAscii("request_id", request.request_id));
  v1::AttendPart part;
  v1::AttendHeader* header = part.mutable_header();
  header->set_context(request.context);
  header->set_layer(request.layer);
  header->set_q_start(request.q_start);
  header->set_kv_len(request.kv_len);
  ANNULUS_ASSIGN_OR_RETURN(const TensorShape q, Streamable(request.q, "q", header->mutable_q()));
  header->set_pattern(request.pattern);
  if (request.plan.has_value()) {
    const absl::string_view plan = Name(*request.plan);
    header->set_plan(plan.data(), plan.size());
  }
  header->set_scale(request.scale);
  header->set_request_id(request.request_id);
  header->set_trace(request.trace);

  grpc::ClientContext rpc;
  SetDeadline(absl::Now() + call.timeout, &rpc);
  const auto stream = stub_->Attend(&rpc);
  const bool open = stream->Write(part);
  int64_t sent_bytes = 0;
  ChunkWriter writer(options_.chunk_bytes, [&](std::string* data) {
    sent_bytes += static_cast<int64_t>(data->size());
    part.mutable_data()->swap(*data);
    if (!stream->Write(part)) return false;
    if (call.progress) call.progress(sent_bytes, q.bytes);
    return true;
  });
  if (open && writer.Write(request.q) && writer.Flush()) stream->WritesDone();

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
  ANNULUS_RETURN_IF_ERROR(Told(finish));
  return reader.Finish();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const ClientOptions& options) {
  ANNULUS_RETURN_IF_ERROR(CheckHostPort("endpoint", options.endpoint));
  constexpr int64_t kChunkBytesMax = kMessageBytesMax - kMessageRoomBytes;
  if (options.chunk_bytes < 1 || options.chunk_bytes > kChunkBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk_bytes is ", options.chunk_bytes, "; expected 1 to ", kChunkBytesMax));
  }
  auto client = std::make_unique<GrpcClient>(options);
  ANNULUS_RETURN_IF_ERROR(client->WaitForService());
  return client;
}

}  // namespace annulus
