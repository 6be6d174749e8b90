#include <grpcpp/server_context.h>
#include <grpcpp/support/sync_stream.h>

#include <chrono>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/rpc/annulus.grpc.pb.h"
#include "runtime/rpc/handlers.h"
#include "runtime/rpc/protocol/channel.h"
#include "runtime/rpc/protocol/codec.h"
#include "runtime/rpc/stall_watch.h"
#include "runtime/rpc/step_streams.h"

namespace annulus {
namespace {

CallContext ContextOf(const grpc::ServerContext* context) {
  CallContext call;
  const auto deadline = context->deadline();
  if (deadline != std::chrono::system_clock::time_point::max()) {
    call.deadline = absl::FromChrono(deadline);
  }
  call.cancelled = CallerGone(context);
  return call;
}

// Answers a unary call of a `Request`: `call` has its result.
template <typename Request, typename Call>
grpc::Status Unary(const grpc::ServerContext* context, const google::protobuf::MessageLite& message,
                   google::protobuf::MessageLite* reply, Call call) {
  if (absl::Status status = CheckProtocol(*context); !status.ok()) return ToGrpc(status);
  const absl::StatusOr<Request> request = FromProto<Request>(message);
  if (!request.ok()) return ToGrpc(request.status());
  const auto result = call(*request);
  if (!result.ok()) return ToGrpc(result.status());
  return ToGrpc(ToProto(*result, reply));
}

class AnnulusHandlers final : public v1::Annulus::Service {
 public:
  AnnulusHandlers(annulus::Service* service, Admission* admission, StepStreams* steps,
                  StallWatch* stalls, const StreamLimits& limits, int64_t chunk_bytes)
      : service_(service),
        admission_(admission),
        steps_(steps),
        stalls_(stalls),
        limits_(limits),
        chunk_bytes_(chunk_bytes) {}

  grpc::Status CreateContext(grpc::ServerContext* context, const v1::ContextSpec* request,
                             v1::ContextInfo* reply) override {
    return Unary<ContextSpec>(context, *request, reply, [&](const ContextSpec& value) {
      return service_->CreateContext(value, ContextOf(context));
    });
  }

  grpc::Status Append(grpc::ServerContext* context, grpc::ServerReader<v1::AppendPart>* stream,
                      v1::AppendResult* reply) override {
    return ToGrpc(DoAppend(context, stream, reply));
  }

  grpc::Status AppendDirect(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::DirectReply, v1::DirectAppend>* stream) override {
    return ToGrpc(DoAppendDirect(context, stream));
  }

  grpc::Status Attend(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::AttendReplyPart, v1::AttendPart>* stream) override {
    return ToGrpc(DoAttend(context, stream));
  }

  grpc::Status Steps(grpc::ServerContext* context, StepStreams::Stream* stream) override {
    return ToGrpc(steps_->Serve(context, stream));
  }

  grpc::Status Fork(grpc::ServerContext* context, const v1::ForkRequest* request,
                    v1::ContextInfo* reply) override {
    return Unary<ForkRequest>(context, *request, reply, [&](const ForkRequest& value) {
      return service_->Fork(value, ContextOf(context));
    });
  }

  grpc::Status Truncate(grpc::ServerContext* context, const v1::TruncateRequest* request,
                        v1::ContextInfo* reply) override {
    return Unary<TruncateRequest>(context, *request, reply, [&](const TruncateRequest& value) {
      return service_->Truncate(value, ContextOf(context));
    });
  }

  grpc::Status List(grpc::ServerContext* context, const v1::ListRequest* request,
                    v1::ContextList* reply) override {
    return Unary<ListRequest>(
        context, *request, reply, [&](const ListRequest& value) -> absl::StatusOr<ContextList> {
          ContextList list;
          ANNULUS_ASSIGN_OR_RETURN(list.contexts, service_->List(value, ContextOf(context)));
          return list;
        });
  }

  grpc::Status Release(grpc::ServerContext* context, const v1::ContextRef* request,
                       v1::ReleaseResult* reply) override {
    return Unary<ContextRef>(
        context, *request, reply, [&](const ContextRef& value) -> absl::StatusOr<Nothing> {
          ANNULUS_RETURN_IF_ERROR(service_->Release(value.context, ContextOf(context)));
          return Nothing();
        });
  }

  grpc::Status Describe(grpc::ServerContext* context, const v1::ContextRef* request,
                        v1::ContextInfo* reply) override {
    return Unary<ContextRef>(context, *request, reply, [&](const ContextRef& value) {
      return service_->Describe(value.context, ContextOf(context));
    });
  }

  grpc::Status KeepAlive(grpc::ServerContext* context, const v1::KeepAliveRequest* request,
                         v1::KeepAliveReply* reply) override {
    if (absl::Status status = CheckProtocol(*context); !status.ok()) return ToGrpc(status);
    const std::vector<ContextId> contexts(request->contexts().begin(), request->contexts().end());
    if (std::ssize(contexts) > kKeepAliveMax) {
      return ToGrpc(absl::InvalidArgumentError(
          absl::StrCat("contexts: ", contexts.size(), "; expected at most ", kKeepAliveMax)));
    }
    ToProto(service_->KeepAlive(contexts, ContextOf(context)), reply);
    return grpc::Status::OK;
  }

  grpc::Status Status(grpc::ServerContext* context, const v1::StatusRequest* request,
                      v1::ClusterStatus* reply) override {
    return Unary<Nothing>(context, *request, reply, [&](const Nothing& value) {
      return service_->Status(ContextOf(context));
    });
  }

 private:
  // Of messages that the client owes, or has asked for.
  template <typename Stream, typename Part>
  bool Read(grpc::ServerContext* context, Stream* stream, Part* part) {
    const StallWatch::Wait wait(stalls_, context);
    return stream->Read(part);
  }
  template <typename Stream, typename Reply>
  bool Write(grpc::ServerContext* context, Stream* stream, const Reply& reply) {
    const StallWatch::Wait wait(stalls_, context);
    return stream->Write(reply);
  }

  // A stream whose caller went away ends like one that stopped early; the true reason is told.
  static absl::Status Gone(const grpc::ServerContext* context, const CallContext& call) {
    if (!context->IsCancelled()) return absl::OkStatus();
    return absl::Now() >= call.deadline
               ? absl::DeadlineExceededError("the deadline passed while the request arrived")
               : absl::CancelledError("the caller cancelled the call");
  }

  absl::Status DoAppend(grpc::ServerContext* context, grpc::ServerReader<v1::AppendPart>* stream,
                        v1::AppendResult* reply) {
    ANNULUS_RETURN_IF_ERROR(CheckProtocol(*context));
    Admission::Ticket ticket(admission_);
    ANNULUS_RETURN_IF_ERROR(ticket.Enter());
    const CallContext call = ContextOf(context);
    AppendReader reader(
        limits_, [&](int64_t bytes) { return ticket.Reserve(bytes); },
        [&](const AppendRequest& piece) -> absl::Status {
          ANNULUS_ASSIGN_OR_RETURN(const AppendResult result, service_->Append(piece, call));
          return ToProto(result, reply);
        });
    v1::AppendPart part;
    while (Read(context, stream, &part)) ANNULUS_RETURN_IF_ERROR(reader.Add(part));
    ANNULUS_RETURN_IF_ERROR(Gone(context, call));
    return reader.Finish();
  }

  absl::Status DoAppendDirect(grpc::ServerContext* context,
                              grpc::ServerReaderWriter<v1::DirectReply, v1::DirectAppend>* stream) {
    ANNULUS_RETURN_IF_ERROR(CheckProtocol(*context));
    Admission::Ticket ticket(admission_);
    ANNULUS_RETURN_IF_ERROR(ticket.Enter());
    const CallContext call = ContextOf(context);
    const GrantSink granted = [&](const AppendGrant& grant) {
      v1::DirectReply reply;
      ANNULUS_RETURN_IF_ERROR(ToProto(grant, reply.mutable_grant()));
      return Write(context, stream, reply)
                 ? absl::OkStatus()
                 : absl::CancelledError("the caller went before its grant");
    };
    v1::DirectAppend message;
    while (Read(context, stream, &message)) {
      ANNULUS_ASSIGN_OR_RETURN(const DirectAppend request, FromProto<DirectAppend>(message));
      ANNULUS_ASSIGN_OR_RETURN(const AppendResult result,
                               service_->AppendDirect(request, granted, call));
      v1::DirectReply reply;
      ANNULUS_RETURN_IF_ERROR(ToProto(result, reply.mutable_result()));
      if (!Write(context, stream, reply)) break;
    }
    return Gone(context, call);
  }

  absl::Status DoAttend(grpc::ServerContext* context,
                        grpc::ServerReaderWriter<v1::AttendReplyPart, v1::AttendPart>* stream) {
    ANNULUS_RETURN_IF_ERROR(CheckProtocol(*context));
    Admission::Ticket ticket(admission_);
    ANNULUS_RETURN_IF_ERROR(ticket.Enter());
    const CallContext call = ContextOf(context);
    AttendReader reader(limits_, [&](int64_t bytes) { return ticket.Reserve(bytes); });
    v1::AttendPart part;
    while (Read(context, stream, &part)) ANNULUS_RETURN_IF_ERROR(reader.Add(part));
    ANNULUS_RETURN_IF_ERROR(Gone(context, call));
    ANNULUS_ASSIGN_OR_RETURN(const AttendRequest request, reader.Finish());
    ANNULUS_ASSIGN_OR_RETURN(const AttendResult result, service_->Attend(request, call));

    v1::AttendReplyPart reply;
    ANNULUS_RETURN_IF_ERROR(ToProto(result, reply.mutable_header()));
    ToProto(result.out.view(), reply.mutable_header()->mutable_out());
    ToProto(result.lse.view(), reply.mutable_header()->mutable_lse());
    const auto bytes = static_cast<int64_t>(result.out.size_bytes() + result.lse.size_bytes());
    const bool in_header = bytes <= kHeaderDataBytesMax;
    bool sent = in_header || Write(context, stream, reply);
    ChunkWriter writer(in_header ? bytes : chunk_bytes_, [&](std::string* data) {
      (in_header ? reply.mutable_header()->mutable_data() : reply.mutable_data())->swap(*data);
      return Write(context, stream, reply);
    });
    sent = sent && writer.Write(result.out) && writer.Write(result.lse) && writer.Flush();
    return sent ? absl::OkStatus() : absl::CancelledError("the caller stopped reading the reply");
  }

  annulus::Service* const service_;
  Admission* const admission_;
  StepStreams* const steps_;
  StallWatch* const stalls_;
  const StreamLimits limits_;
  const int64_t chunk_bytes_;
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

std::unique_ptr<grpc::Service> MakeAnnulusHandlers(Service* service, Admission* admission,
                                                   StepStreams* steps, StallWatch* stalls,
                                                   const StreamLimits& limits,
                                                   int64_t chunk_bytes) {
  return std::make_unique<AnnulusHandlers>(service, admission, steps, stalls, limits, chunk_bytes);
}

}  // namespace annulus
