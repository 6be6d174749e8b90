#include "runtime/server/peer.h"

#include <arpa/inet.h>
#include <grpcpp/server_context.h>
#include <netinet/in.h>

#include "absl/strings/strip.h"
#include "base/peer_address.h"
#include "runtime/identity/peer_name.h"

namespace annulus {

std::string PeerOf(const grpc::ServerContext& context, const Caller& caller) {
  return caller.tenant.empty() ? PeerOfUri(context.peer()) : PeerOf(caller);
}

bool IsLoopbackHost(absl::string_view host) {
  in_addr address;
  if (inet_pton(AF_INET, std::string(host).c_str(), &address) == 1) {
    return ntohl(address.s_addr) >> 24 == 127;
  }
  return host == "::1" || host == "localhost";
}

std::string TurnOf(const grpc::ServerContext& context, const Caller& caller) {
  return caller.tenant.empty() ? context.peer() : PeerOf(context, caller);
}

std::string TenantOfTurn(absl::string_view turn) {
  return absl::ConsumePrefix(&turn, kTenantPeer) ? std::string(turn) : std::string();
}

}  // namespace annulus
