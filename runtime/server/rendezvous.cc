#include "runtime/server/rendezvous.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>

#include <algorithm>
#include <mutex>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/server/door.h"
#include "runtime/server/handlers.h"

namespace annulus {
namespace {

constexpr size_t kKeyBytesMax = 256;
constexpr size_t kValueBytesMax = 64 << 10;
constexpr size_t kKeysMax = 4096;
constexpr absl::Duration kServerWaitMax = absl::Seconds(30);
constexpr absl::Duration kPutTimeout = absl::Seconds(10);
// How soon a waiting call sees that its caller has gone.
constexpr absl::Duration kWaitSlice = absl::Milliseconds(100);

absl::Status CheckKey(absl::string_view key) {
  if (!key.empty() && key.size() <= kKeyBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("key is ", key.size(), " bytes; expected 1 to ", kKeyBytesMax));
}

class RendezvousHandlers final : public v1::Rendezvous::Service {
 public:
  RendezvousHandlers(annulus::Rendezvous* rendezvous, Door* door, Admission* admission)
      : rendezvous_(rendezvous), door_(door), admission_(admission) {}

  grpc::Status Put(grpc::ServerContext* context, const v1::KeyValue* request,
                   v1::PutResult* reply) override {
    return ToGrpc(DoPut(*context, *request));
  }

  grpc::Status Get(grpc::ServerContext* context, const v1::Key* request,
                   v1::KeyValue* reply) override {
    absl::StatusOr<std::string> value = DoGet(*context, request->key());
    if (value.ok()) {
      reply->set_key(request->key());
      reply->set_value(*value);
    }
    return ToGrpc(value.status());
  }

 private:
  absl::Status DoPut(const grpc::ServerContext& context, const v1::KeyValue& request) {
    ANNULUS_RETURN_IF_ERROR(door_->Admit(context, "Put", Access::kJoin).status());
    ANNULUS_RETURN_IF_ERROR(CheckKey(request.key()));
    if (request.value().size() > kValueBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat("value is ", request.value().size(),
                                                     " bytes; expected at most ", kValueBytesMax));
    }
    std::lock_guard lock(mutex_);
    if (keys_.size() >= kKeysMax && keys_.count(request.key()) == 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the rendezvous holds its ", kKeysMax, " keys already"));
    }
    ANNULUS_RETURN_IF_ERROR(rendezvous_->Put(request.key(), request.value()));
    keys_.insert(request.key());
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> DoGet(const grpc::ServerContext& context, const std::string& key) {
    ANNULUS_RETURN_IF_ERROR(door_->Admit(context, "Get", Access::kJoin).status());
    ANNULUS_RETURN_IF_ERROR(CheckKey(key));
    Admission::Ticket ticket(admission_);
    ANNULUS_RETURN_IF_ERROR(ticket.Enter());
    const absl::Time deadline =
        std::min(absl::Now() + kServerWaitMax, absl::FromChrono(context.deadline()));
    for (;;) {
      const absl::Time slice = std::min(deadline, absl::Now() + kWaitSlice);
      absl::StatusOr<std::string> value = rendezvous_->Get(key, slice);
      if (!absl::IsDeadlineExceeded(value.status()) || absl::Now() >= deadline) return value;
      if (context.IsCancelled()) return absl::CancelledError("the caller cancelled the call");
    }
  }

  annulus::Rendezvous* const rendezvous_;
  Door* const door_;
  Admission* const admission_;
  std::mutex mutex_;
  std::set<std::string> keys_;  // put through this service, to bound them
};

class RpcRendezvous final : public Rendezvous {
 public:
  RpcRendezvous(const std::string& endpoint, std::unique_ptr<ClientIdentity> identity)
      : endpoint_(endpoint),
        identity_(std::move(identity)),
        stub_(v1::Rendezvous::NewStub(identity_->ChannelTo(endpoint))) {}

  absl::Status Put(absl::string_view key, absl::string_view value) override {
    v1::KeyValue request;
    request.set_key(key.data(), key.size());
    request.set_value(value.data(), value.size());
    v1::PutResult reply;
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    SetUpCall(absl::Now() + kPutTimeout, &context, identity_->token());
    return Named(stub_->Put(&context, request, &reply), key);
  }

  absl::StatusOr<std::string> Get(absl::string_view key, absl::Time deadline) override {
    v1::Key request;
    request.set_key(key.data(), key.size());
    for (;;) {
      v1::KeyValue reply;
      grpc::ClientContext context;
      context.set_wait_for_ready(true);
      SetUpCall(deadline, &context, identity_->token());
      const grpc::Status status = stub_->Get(&context, request, &reply);
      if (status.ok()) return reply.value();
      // The service waits less long than the caller may want to, and may restart meanwhile.
      const bool retry = status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED ||
                         status.error_code() == grpc::StatusCode::UNAVAILABLE;
      if (!retry || absl::Now() >= deadline) return Named(status, key);
    }
  }

 private:
  absl::Status Named(const grpc::Status& status, absl::string_view key) const {
    const absl::Status from = FromGrpc(status);
    if (from.ok()) return from;
    return absl::Status(from.code(), absl::StrCat("rendezvous at ", endpoint_, ", key \"", key,
                                                  "\": ", from.message()));
  }

  const std::string endpoint_;
  const std::unique_ptr<ClientIdentity> identity_;
  const std::unique_ptr<v1::Rendezvous::Stub> stub_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeRendezvousHandlers(Rendezvous* rendezvous, Door* door,
                                                      Admission* admission) {
  return std::make_unique<RendezvousHandlers>(rendezvous, door, admission);
}

absl::StatusOr<std::unique_ptr<Rendezvous>> MakeRpcRendezvous(const std::string& endpoint,
                                                              const ClientSecurity& security) {
  ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<ClientIdentity> identity,
                           ClientIdentity::Open(security));
  return std::make_unique<RpcRendezvous>(endpoint, std::move(identity));
}

}  // namespace annulus
