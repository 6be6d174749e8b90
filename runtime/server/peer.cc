#include "runtime/server/peer.h"

#include <arpa/inet.h>
#include <grpcpp/server_context.h>
#include <netinet/in.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "base/peer_address.h"

namespace annulus {
namespace {

constexpr absl::string_view kTenant = "tenant ";

// Whether `text` is an address of IPv6.
bool ParseIpv6(const std::string& text, sockaddr_in6* address) {
  address->sin6_family = AF_INET6;
  return inet_pton(AF_INET6, text.c_str(), &address->sin6_addr) == 1;
}

std::string PeerOfIpv6(const sockaddr_in6& address) {
  return PeerOf(reinterpret_cast<const sockaddr&>(address));
}

}  // namespace

std::string PeerOf(const grpc::ServerContext& context, const Caller& caller) {
  if (!caller.tenant.empty()) return absl::StrCat(kTenant, caller.tenant);
  return PeerOfUri(context.peer());
}

std::string HostOf(absl::string_view endpoint) {
  std::string text = absl::StrReplaceAll(endpoint.substr(0, endpoint.rfind(':')),
                                         {{"%5B", ""}, {"%5D", ""}, {"[", ""}, {"]", ""}});
  text.resize(std::min(text.size(), text.find('%')));  // the link of a local address
  sockaddr_in6 address = {};
  if (!ParseIpv6(text, &address)) return text;
  if (IN6_IS_ADDR_V4MAPPED(&address.sin6_addr)) return PeerOfIpv6(address);
  char canonical[INET6_ADDRSTRLEN] = "";
  inet_ntop(AF_INET6, &address.sin6_addr, canonical, sizeof(canonical));
  return canonical;
}

std::string HostOfUri(absl::string_view uri) {
  if (!absl::ConsumePrefix(&uri, "ipv4:")) absl::ConsumePrefix(&uri, "ipv6:");
  return HostOf(uri);
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
  return absl::ConsumePrefix(&turn, kTenant) ? std::string(turn) : std::string();
}

std::string PeerOfUri(absl::string_view uri) {
  if (!absl::StartsWith(uri, "ipv4:") && !absl::StartsWith(uri, "ipv6:")) return std::string(uri);
  std::string host = HostOfUri(uri);
  sockaddr_in6 address = {};
  return ParseIpv6(host, &address) ? PeerOfIpv6(address) : host;
}

}  // namespace annulus
