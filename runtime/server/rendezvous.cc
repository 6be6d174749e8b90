#include "runtime/server/rendezvous.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>

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
constexpr absl::Duration kPutTimeout = absl::Seconds(10);
// How often somebody who waits for a value asks for it.
constexpr absl::Duration kAskPeriod = absl::Milliseconds(50);

absl::Status CheckKey(absl::string_view key) {
  if (!key.empty() && key.size() <= kKeyBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("key is ", key.size(), " bytes; expected 1 to ", kKeyBytesMax));
}

// Nothing waits here, and callers publish nothing: what they could put would be believed by others,
// and stay.
class RendezvousHandlers final : public v1::Rendezvous::Service {
 public:
  RendezvousHandlers(annulus::Rendezvous* rendezvous, Door* door)
      : rendezvous_(rendezvous), door_(door) {}

  grpc::Status Put(grpc::ServerContext* context, const v1::KeyValue*, v1::PutResult*) override {
    absl::Status status = door_->Admit(*context, "Put", Access::kJoin).status();
    if (status.ok()) {
      status = absl::PermissionDeniedError(
          "the rendezvous is the coordinator's: it publishes, others only read");
    }
    return ToGrpc(status);
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
  absl::StatusOr<std::string> DoGet(const grpc::ServerContext& context, const std::string& key) {
    ANNULUS_RETURN_IF_ERROR(door_->Admit(context, "Get", Access::kJoin).status());
    ANNULUS_RETURN_IF_ERROR(CheckKey(key));
    absl::StatusOr<std::string> value = rendezvous_->Get(key, absl::Now());
    if (!absl::IsDeadlineExceeded(value.status())) return value;
    return absl::NotFoundError("nothing is published under the key");
  }

  annulus::Rendezvous* const rendezvous_;
  Door* const door_;
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
      // The service does not wait for a value, and may restart meanwhile.
      const bool not_yet = status.error_code() == grpc::StatusCode::NOT_FOUND;
      if (!not_yet && status.error_code() != grpc::StatusCode::UNAVAILABLE) {
        return Named(status, key);
      }
      if (absl::Now() + kAskPeriod >= deadline) {
        absl::SleepFor(deadline - absl::Now());
        return Named(not_yet ? grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED,
                                            "nothing was published by the deadline")
                             : status,
                     key);
      }
      absl::SleepFor(kAskPeriod);
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

std::unique_ptr<grpc::Service> MakeRendezvousHandlers(Rendezvous* rendezvous, Door* door) {
  return std::make_unique<RendezvousHandlers>(rendezvous, door);
}

absl::StatusOr<std::unique_ptr<Rendezvous>> MakeRpcRendezvous(const std::string& endpoint,
                                                              const ClientSecurity& security) {
  ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<ClientIdentity> identity,
                           ClientIdentity::Open(security));
  return std::make_unique<RpcRendezvous>(endpoint, std::move(identity));
}

}  // namespace annulus
