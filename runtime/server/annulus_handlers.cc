#include <grpcpp/impl/service_type.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/method_handler.h>
#include <grpcpp/support/sync_stream.h>

#include <chrono>
#include <deque>
#include <iterator>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/identity/peer_name.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/protocol/public/key_lists.h"
#include "runtime/protocol/public/unary.h"
#include "runtime/server/door.h"
#include "runtime/server/handlers.h"
#include "runtime/server/reply_room.h"
#include "runtime/server/step_service.h"
#include "runtime/server/transfer.h"
#include "runtime/server/watched_end.h"

namespace annulus {
namespace {

CallContext ContextOf(const grpc::ServerContext* context, Caller caller) {
  CallContext call;
  call.caller = std::move(caller);
  call.trace = TraceOf(*context);
  const auto deadline = context->deadline();
  if (deadline != std::chrono::system_clock::time_point::max()) {
    call.deadline = absl::FromChrono(deadline);
  }
  call.cancelled = CallerGone(context);
  return call;
}

absl::StatusOr<SelectRequest> SelectOf(const AttendRequest& attend,
                                       const std::vector<float>& weights) {
  if (attend.plan.has_value() || attend.keys_begin != 0 || attend.keys_end.has_value() ||
      !attend.lists.empty() || !attend.sinks.empty() || attend.index.q.tokens != 0) {
    return absl::InvalidArgumentError(
        "plan, keys, lists, sinks, index: given; expected none of them in a Select");
  }
  SelectRequest request;
  CopyQueries(attend, &request);
  request.pattern = attend.pattern;
  request.weights = weights;
  request.scale = attend.scale;
  return request;
}

absl::StatusOr<CompressRequest> CompressOf(const AttendRequest& attend,
                                           const std::optional<CompressRequest>& compress) {
  if (!compress.has_value()) {
    return absl::InvalidArgumentError("compress: absent; expected it in a Compress");
  }
  if (!attend.pattern.empty() || attend.plan.has_value() || attend.keys_begin != 0 ||
      attend.keys_end.has_value() || !attend.lists.empty() || !attend.sinks.empty() ||
      attend.index.q.tokens != 0) {
    return absl::InvalidArgumentError(
        "pattern, plan, keys, lists, sinks, index: given; expected none of them in a Compress");
  }
  CompressRequest request = *compress;
  CopyQueries(attend, &request);
  request.scale = attend.scale;
  return request;
}

// Small calls go by the table; those that carry tensors, or stay open, have code of their own.
class AnnulusHandlers final : public grpc::Service {
 public:
  AnnulusHandlers(annulus::Service* service, Door* door, RpcBounds* bounds, StepService* steps,
                  const StreamLimits& limits, int64_t chunk_bytes)
      : service_(service),
        door_(door),
        bounds_(bounds),
        steps_(steps),
        limits_(limits),
        chunk_bytes_(chunk_bytes) {
    ForEachCall([this](const auto& call) {
      using Call = std::decay_t<decltype(call)>;
      if constexpr (Call::kForm == Form::kUnary) AddUnary<typename Call::Request>(call.name);
    });
    AddStream<grpc::internal::ClientStreamingHandler<AnnulusHandlers, grpc::ByteBuffer,
                                                     v1::AppendResult>>(
        "Append", grpc::internal::RpcMethod::CLIENT_STREAMING, &AnnulusHandlers::Append);
    AddBidi<v1::DirectReply>("AppendDirect", &AnnulusHandlers::AppendDirect);
    AddBidi<v1::AttendReplyPart>("Attend", &AnnulusHandlers::Attend);
    AddBidi<v1::AttendReplyPart>("Select", &AnnulusHandlers::Select);
    AddBidi<v1::AttendReplyPart>("Compress", &AnnulusHandlers::Compress);
    AddBidi<v1::StepsReply>("Steps", &AnnulusHandlers::Steps);
  }

 private:
  template <typename Request>
  void AddUnary(const char* call) {
    const auto answer = [this](grpc::ServerContext* rpc, const std::string& bytes,
                               std::string* reply) {
      return ToGrpc(bounds_->refusals.Note(Unary<Request>(rpc, bytes, reply)));
    };
    AddMethod(NewWatchedUnary(Path(call), &bounds_->ends, answer));
  }

  // What is sent on streams is counted before it is parsed.
  template <typename ReplyPart, typename Serve>
  void AddBidi(const char* call, Serve serve) {
    AddStream<grpc::internal::BidiStreamingHandler<AnnulusHandlers, grpc::ByteBuffer, ReplyPart>>(
        call, grpc::internal::RpcMethod::BIDI_STREAMING, serve);
  }

  template <typename Handler, typename Serve>
  void AddStream(const char* call, grpc::internal::RpcMethod::RpcType type, Serve serve) {
    const auto run = [serve](AnnulusHandlers* self, grpc::ServerContext* rpc, auto*... arguments) {
      return ToGrpc(self->bounds_->refusals.Note((self->*serve)(rpc, arguments...)));
    };
    AddMethod(NewWatchedMethod<Handler>(Path(call), type, &bounds_->ends, this, run));
  }

  // Lives as long as this.
  const char* Path(const char* call) { return paths_.emplace_back(PathOf(call)).c_str(); }

  // Each call begins with this: the caller speaks our protocol, is known, and may make the call.
  template <typename Request>
  absl::StatusOr<CallContext> Begin(const grpc::ServerContext* rpc) {
    ANNULUS_RETURN_IF_ERROR(CheckProtocol(*rpc));
    const auto& call = CallOf<Request>();
    ANNULUS_ASSIGN_OR_RETURN(Caller caller, door_->Admit(*rpc, call.name, call.access));
    return ContextOf(rpc, std::move(caller));
  }

  template <typename Request>
  absl::Status Unary(grpc::ServerContext* rpc, const std::string& bytes, std::string* reply) {
    ANNULUS_ASSIGN_OR_RETURN(const CallContext call, Begin<Request>(rpc));
    Admission::Peer peer(&bounds_->admission, PeerOf(call.caller));
    Admission::Ticket ticket(&peer);
    ANNULUS_RETURN_IF_ERROR(ticket.EnterShort());
    ANNULUS_ASSIGN_OR_RETURN(const Request request, ValueOf<Request>(bytes, ""));
    ANNULUS_ASSIGN_OR_RETURN(auto answer, service_->Call(request, call));
    if constexpr (requires { FittedBytesOf(answer); }) {
      *reply = FittedBytesOf(std::move(answer));
    } else {
      *reply = BytesOf(answer);
    }
    return absl::OkStatus();
  }

  absl::Status Steps(grpc::ServerContext* rpc, StepService::Stream* stream) {
    return steps_->Serve(rpc, stream);
  }

  // A stream whose caller went away ends like one that stopped early; the true reason is told.
  static absl::Status Gone(const grpc::ServerContext* context, const CallContext& call) {
    if (!context->IsCancelled()) return absl::OkStatus();
    return absl::Now() >= call.deadline
               ? absl::DeadlineExceededError("the deadline passed while the request arrived")
               : absl::CancelledError("the caller cancelled the call");
  }

  // A stream outlasts what its caller proved at first. The door's words end one whose token has
  // expired or was taken back, or is another caller's now.
  template <typename Request>
  absl::Status AdmitAgain(const grpc::ServerContext* rpc, CallContext* call) {
    if (!door_->asks()) return absl::OkStatus();
    const auto& entry = CallOf<Request>();
    ANNULUS_ASSIGN_OR_RETURN(Caller caller, door_->Admit(*rpc, entry.name, entry.access));
    if (caller.name != call->caller.name || caller.tenant != call->caller.tenant) {
      return absl::UnauthenticatedError(
          "authorization: another caller's by now; expected the caller that began the stream");
    }
    call->caller = std::move(caller);
    return absl::OkStatus();
  }

  absl::Status Append(grpc::ServerContext* context, grpc::ServerReader<grpc::ByteBuffer>* stream,
                      v1::AppendResult* reply) {
    ANNULUS_ASSIGN_OR_RETURN(CallContext call, Begin<AppendRequest>(context));
    Transfer transfer(bounds_, context, call.caller);
    ANNULUS_RETURN_IF_ERROR(transfer.status());
    AppendReader reader(
        limits_,
        [&](const AppendRequest& header, int64_t bytes) {
          return transfer.Admit(service_, header, call, bytes);
        },
        [&](const AppendRequest& piece) -> absl::Status {
          ANNULUS_RETURN_IF_ERROR(AdmitAgain<AppendRequest>(context, &call));
          ANNULUS_ASSIGN_OR_RETURN(const AppendResult result, transfer.Work(service_, piece, call));
          return ToProto(result, reply);
        });
    v1::AppendPart part;
    while (transfer.Read(stream, &part)) {
      if (absl::Now() >= call.caller.expires) {  // within a piece, which may come slowly
        ANNULUS_RETURN_IF_ERROR(AdmitAgain<AppendRequest>(context, &call));
      }
      ANNULUS_RETURN_IF_ERROR(reader.Add(part));
    }
    ANNULUS_RETURN_IF_ERROR(Gone(context, call));
    return reader.Finish();
  }

  // Has no slot: while it lasts, it waits for what its client uploads to the workers.
  absl::Status AppendDirect(grpc::ServerContext* context,
                            grpc::ServerReaderWriter<v1::DirectReply, grpc::ByteBuffer>* stream) {
    ANNULUS_ASSIGN_OR_RETURN(CallContext call, Begin<DirectAppend>(context));
    Transfer transfer(bounds_, context, call.caller);
    ANNULUS_RETURN_IF_ERROR(transfer.status());
    const auto granted = [&](const AppendGrant& grant) -> absl::Status {
      v1::DirectReply reply;
      ANNULUS_RETURN_IF_ERROR(ToProto(grant, reply.mutable_grant()));
      return transfer.Write(stream, reply)
                 ? absl::OkStatus()
                 : absl::CancelledError("the caller went before its grant");
    };
    v1::DirectAppend message;
    while (transfer.Read(stream, &message)) {
      ANNULUS_RETURN_IF_ERROR(transfer.Resume());
      ANNULUS_RETURN_IF_ERROR(AdmitAgain<DirectAppend>(context, &call));
      ANNULUS_ASSIGN_OR_RETURN(DirectAppend request, FromProto<DirectAppend>(message));
      request.granted = granted;
      ANNULUS_ASSIGN_OR_RETURN(const AppendResult result, service_->Call(request, call));
      v1::DirectReply reply;
      ANNULUS_RETURN_IF_ERROR(ToProto(result, reply.mutable_result()));
      if (!transfer.Write(stream, reply)) break;
      transfer.Pause();
    }
    return Gone(context, call);
  }

  using AttendStream = grpc::ServerReaderWriter<v1::AttendReplyPart, grpc::ByteBuffer>;

  // Both must outlive the reader. An Attend, a Select and a Compress ask in the same form.
  AttendReader ReaderOf(Transfer* transfer, const CallContext& call) {
    return AttendReader(limits_,
                        [this, transfer, &call](const AttendRequest& header, int64_t bytes) {
                          return transfer->Admit(service_, header, call, bytes);
                        });
  }

  // The whole request, whose tensors are the reader's.
  absl::StatusOr<AttendRequest> Receive(grpc::ServerContext* context, const CallContext& call,
                                        AttendStream* stream, Transfer* transfer,
                                        AttendReader* reader) {
    v1::AttendPart part;
    while (transfer->Read(stream, &part)) ANNULUS_RETURN_IF_ERROR(reader->Add(part));
    ANNULUS_RETURN_IF_ERROR(Gone(context, call));
    return reader->Finish();
  }

  absl::Status Attend(grpc::ServerContext* context, AttendStream* stream) {
    ANNULUS_ASSIGN_OR_RETURN(const CallContext call, Begin<AttendRequest>(context));
    Transfer transfer(bounds_, context, call.caller);
    ANNULUS_RETURN_IF_ERROR(transfer.status());
    AttendReader reader = ReaderOf(&transfer, call);
    ANNULUS_ASSIGN_OR_RETURN(const AttendRequest request,
                             Receive(context, call, stream, &transfer, &reader));
    if (!reader.weights().empty() || reader.compress().has_value()) {
      return absl::InvalidArgumentError("weights, compress: given; expected none in an Attend");
    }
    ANNULUS_ASSIGN_OR_RETURN(const AttendResult result, transfer.Work(service_, request, call));

    v1::AttendReplyPart reply;
    ANNULUS_RETURN_IF_ERROR(ToProto(result, reply.mutable_header()));
    ToProto(result.out.view(), reply.mutable_header()->mutable_out());
    ToProto(result.lse.view(), reply.mutable_header()->mutable_lse());
    const auto bytes = static_cast<int64_t>(result.out.size_bytes() + result.lse.size_bytes());
    const bool in_header = bytes <= kHeaderDataBytesMax;
    bool sent = in_header || transfer.Write(stream, reply);
    // A small answer and the status leave together, when its bytes are counted no more.
    grpc::WriteOptions options;
    if (in_header) options.set_last_message();
    ChunkWriter writer(in_header ? bytes : chunk_bytes_, [&](std::string* data) {
      (in_header ? reply.mutable_header()->mutable_data() : reply.mutable_data())->swap(*data);
      return transfer.Write(stream, reply, options);
    });
    sent = sent && writer.Write(result.out) && writer.Write(result.lse) && writer.Flush();
    return sent ? absl::OkStatus() : absl::CancelledError("the caller stopped reading the reply");
  }

  absl::Status Select(grpc::ServerContext* context, AttendStream* stream) {
    ANNULUS_ASSIGN_OR_RETURN(const CallContext call, Begin<SelectRequest>(context));
    Transfer transfer(bounds_, context, call.caller);
    ANNULUS_RETURN_IF_ERROR(transfer.status());
    AttendReader reader = ReaderOf(&transfer, call);
    ANNULUS_ASSIGN_OR_RETURN(const AttendRequest attend,
                             Receive(context, call, stream, &transfer, &reader));
    ANNULUS_ASSIGN_OR_RETURN(const SelectRequest request, SelectOf(attend, reader.weights()));
    if (reader.compress().has_value()) {
      return absl::InvalidArgumentError("compress: given; expected it in a Compress alone");
    }
    ANNULUS_ASSIGN_OR_RETURN(const SelectResult result, transfer.Work(service_, request, call));
    return ReplyLists(result, result.lists, stream, &transfer);
  }

  absl::Status Compress(grpc::ServerContext* context, AttendStream* stream) {
    ANNULUS_ASSIGN_OR_RETURN(const CallContext call, Begin<CompressRequest>(context));
    Transfer transfer(bounds_, context, call.caller);
    ANNULUS_RETURN_IF_ERROR(transfer.status());
    AttendReader reader = ReaderOf(&transfer, call);
    ANNULUS_ASSIGN_OR_RETURN(const AttendRequest attend,
                             Receive(context, call, stream, &transfer, &reader));
    ANNULUS_ASSIGN_OR_RETURN(const CompressRequest request, CompressOf(attend, reader.compress()));
    ANNULUS_ASSIGN_OR_RETURN(const CompressResult result, transfer.Work(service_, request, call));
    return ReplyLists(result, {result.kept}, stream, &transfer);
  }

  // A result, and then the data of its lists.
  template <typename Result>
  absl::Status ReplyLists(const Result& result, const std::vector<CallList>& lists,
                          AttendStream* stream, Transfer* transfer) {
    v1::AttendReplyPart reply;
    ANNULUS_RETURN_IF_ERROR(ToProto(result, reply.mutable_header()));
    ToProto(lists, /*with_data=*/false, reply.mutable_header()->mutable_lists());
    bool sent = transfer->Write(stream, reply);
    ChunkWriter writer(chunk_bytes_, [&](std::string* data) {
      reply.mutable_data()->swap(*data);
      return transfer->Write(stream, reply);
    });
    for (const absl::Span<const std::byte> data : DataOf(lists)) {
      sent = sent && writer.Write(data);
    }
    sent = sent && writer.Flush();
    return sent ? absl::OkStatus() : absl::CancelledError("the caller stopped reading the reply");
  }

  annulus::Service* const service_;
  Door* const door_;
  RpcBounds* const bounds_;
  StepService* const steps_;
  const StreamLimits limits_;
  const int64_t chunk_bytes_;
  std::deque<std::string> paths_;
};

}  // namespace

absl::Status CheckProtocol(const grpc::ServerContext& context) {
  const auto named = context.client_metadata().find(kProtocolKey);
  if (named == context.client_metadata().end()) return absl::OkStatus();
  const absl::string_view version(named->second.data(), named->second.size());
  if (version == kProtocolVersion) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "protocol: ", absl::CHexEscape(version.substr(0, 16)), " of the client; expected ",
      kProtocolVersion, ", which the service speaks: use a client of the service's release"));
}

// What is malformed counts as absent, and so does what comes twice.
TraceContext TraceOf(const grpc::ServerContext& context) {
  const auto [begin, end] = context.client_metadata().equal_range(kTraceparentKey);
  if (begin == end || std::next(begin) != end) return {};
  const absl::string_view text(begin->second.data(), begin->second.size());
  return ParseTraceparent(text).value_or(TraceContext());
}

// Asking gRPC polls the connection, against the threads that read from it; a call of a few hundred
// µs must not pay for that at each of its stages. So gRPC is asked every few ms only.
std::function<bool()> CallerGone(const grpc::ServerContext* context) {
  constexpr absl::Duration kPeriod = absl::Milliseconds(5);
  return [context, next = absl::Now() + kPeriod, gone = false]() mutable {
    const absl::Time now = absl::Now();
    if (gone || now < next) return gone;
    next = now + kPeriod;
    gone = context->IsCancelled();
    return gone;
  };
}

std::unique_ptr<grpc::Service> MakeAnnulusHandlers(Service* service, Door* door, RpcBounds* bounds,
                                                   StepService* steps, const StreamLimits& limits,
                                                   int64_t chunk_bytes) {
  return std::make_unique<AnnulusHandlers>(service, door, bounds, steps, limits, chunk_bytes);
}

}  // namespace annulus
