#include "runtime/server/join.h"

#include <fnmatch.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/server_context.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/peer_address.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/identity/peer_name.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/protocol/public/workers.grpc.pb.h"
#include "runtime/server/door.h"
#include "runtime/server/watched_end.h"

namespace annulus {
namespace {

constexpr absl::Duration kWhyWait = absl::Milliseconds(200);
constexpr size_t kRequestBytesMax = 4096;

class JoinHandlers final : public grpc::Service {
 public:
  JoinHandlers(const JoinOptions& options, Door* door, RpcBounds* bounds)
      : options_(options), door_(door), bounds_(bounds) {
    const auto join = [this](grpc::ServerContext* rpc, const std::string& request,
                             std::string* reply) {
      return ToGrpc(bounds_->refusals.Note(Join(*rpc, request, reply)));
    };
    AddMethod(NewWatchedUnary("/annulus.v1.Workers/Join", &bounds->ends, join));
  }

 private:
  absl::Status Join(const grpc::ServerContext& rpc, const std::string& bytes, std::string* answer) {
    ANNULUS_ASSIGN_OR_RETURN(const Caller caller, door_->Admit(rpc, "Join", Access::kJoin));
    Admission::Peer peer(&bounds_->admission, PeerOf(caller));
    Admission::Ticket ticket(&peer);
    ANNULUS_RETURN_IF_ERROR(ticket.EnterShort());
    v1::JoinRequest request;
    if (bytes.size() > kRequestBytesMax || !request.ParseFromString(bytes)) {
      return absl::InvalidArgumentError("request: not one; expected a JoinRequest");
    }
    const absl::Status address = CheckDataAddress(request.data_address(), HostOfUri(rpc.peer()),
                                                  CertificateNames(rpc), options_.data_hosts);
    if (!address.ok()) {
      door_->Audit("Join", caller, address.code(), address.message());
      return address;
    }
    Admittance in = options_.admit(request.key(), request.data_address());
    // Members ask again and again, and keep their key.
    if (absl::string_view(request.key()) != in.key.view()) {
      door_->Audit("Join", caller, absl::StatusCode::kOk, request.data_address());
    }
    v1::JoinReply reply;
    reply.set_address(std::move(in.address));
    reply.set_key(in.key.bytes.data(), LinkKey::kBytes);
    reply.SerializeToString(answer);
    return absl::OkStatus();
  }

  const JoinOptions options_;
  Door* const door_;
  RpcBounds* const bounds_;
};

}  // namespace

absl::Status CheckDataAddress(const std::string& data_address, const std::string& caller,
                              const std::vector<std::string>& names,
                              const std::vector<std::string>& hosts) {
  if (data_address.empty()) return absl::OkStatus();
  const absl::string_view endpoint = absl::StripPrefix(data_address, kTlsScheme);
  ANNULUS_RETURN_IF_ERROR(CheckHostPort("data_address", endpoint));
  const std::string host = HostOf(endpoint);
  if (host == caller || (IsLoopbackHost(host) && IsLoopbackHost(caller))) return absl::OkStatus();
  if (std::find(names.begin(), names.end(), host) != names.end()) return absl::OkStatus();
  for (const std::string& pattern : hosts) {
    if (fnmatch(pattern.c_str(), host.c_str(), FNM_NOESCAPE) == 0) return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "data_address: ", Quoted(data_address), "; expected the host that the worker joins from, ",
      caller, ", one that its certificate names, or one of the coordinator's --data-hosts"));
}

std::unique_ptr<grpc::Service> MakeJoinHandlers(const JoinOptions& options, Door* door,
                                                RpcBounds* bounds) {
  return std::make_unique<JoinHandlers>(options, door, bounds);
}

absl::StatusOr<std::unique_ptr<JoinClient>> JoinClient::Make(const std::string& endpoint,
                                                             const ClientSecurity& security) {
  ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<ClientIdentity> identity,
                           ClientIdentity::Open(security));
  return std::unique_ptr<JoinClient>(new JoinClient(endpoint, std::move(identity)));
}

JoinClient::JoinClient(const std::string& endpoint, std::unique_ptr<ClientIdentity> identity)
    : endpoint_(endpoint),
      identity_(std::move(identity)),
      channel_(identity_->ChannelTo(endpoint)) {}

absl::StatusOr<Admittance> JoinClient::Join(const std::string& data_address, absl::Time deadline) {
  v1::JoinRequest request;
  request.set_data_address(data_address);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    request.set_key(key_);
  }
  v1::JoinReply reply;
  const auto ask = [&](bool wait_for_ready, absl::Time until) {
    grpc::ClientContext context;
    context.set_wait_for_ready(wait_for_ready);
    SetUpCall(until, &context, identity_->token());
    return FromGrpc(v1::Workers::NewStub(channel_)->Join(&context, request, &reply));
  };
  absl::Status joined = ask(true, deadline);
  if (absl::IsDeadlineExceeded(joined)) {
    // A call that does not wait for a connection is told why there is none.
    joined = ask(false, absl::Now() + kWhyWait);
  }
  if (!joined.ok()) {
    return absl::Status(joined.code(),
                        absl::StrCat("joining at ", endpoint_, ": ", joined.message()));
  }
  if (reply.key().size() != LinkKey::kBytes) {
    return absl::InternalError(absl::StrCat("joining at ", endpoint_, ": a key of ",
                                            reply.key().size(), " bytes; expected ",
                                            LinkKey::kBytes));
  }
  Admittance in{reply.address(), {}};
  reply.key().copy(in.key.bytes.data(), LinkKey::kBytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  key_ = reply.key();
  return in;
}

}  // namespace annulus
