#include "runtime/server/peer.h"

#include <arpa/inet.h>
#include <grpcpp/server_context.h>
#include <netinet/in.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"

namespace annulus {
namespace {

constexpr absl::string_view kTenant = "tenant ";

template <typename Address>
std::string TextOf(int family, const Address& address) {
  char text[INET6_ADDRSTRLEN] = "";
  inet_ntop(family, &address, text, sizeof(text));
  return text;
}

// Of IPv4 in IPv6.
in_addr InnerOf(const in6_addr& address) {
  in_addr inner;
  std::copy_n(address.s6_addr + 12, 4, reinterpret_cast<uint8_t*>(&inner));
  return inner;
}

std::string PeerOfIpv6(in6_addr address) {
  if (IN6_IS_ADDR_V4MAPPED(&address)) return TextOf(AF_INET, InnerOf(address));
  std::fill_n(address.s6_addr + 8, 8, uint8_t{0});
  return TextOf(AF_INET6, address);
}

}  // namespace

std::string PeerOf(const sockaddr& address) {
  if (address.sa_family == AF_INET) {
    return TextOf(AF_INET, reinterpret_cast<const sockaddr_in&>(address).sin_addr);
  }
  if (address.sa_family == AF_INET6) {
    return PeerOfIpv6(reinterpret_cast<const sockaddr_in6&>(address).sin6_addr);
  }
  return "local";
}

std::string PeerOf(const grpc::ServerContext& context, const Caller& caller) {
  if (!caller.tenant.empty()) return absl::StrCat(kTenant, caller.tenant);
  return PeerOfUri(context.peer());
}

std::string HostOf(absl::string_view endpoint) {
  std::string text = absl::StrReplaceAll(endpoint.substr(0, endpoint.rfind(':')),
                                         {{"%5B", ""}, {"%5D", ""}, {"[", ""}, {"]", ""}});
  text.resize(std::min(text.size(), text.find('%')));  // the link of a local address
  in6_addr address;
  if (inet_pton(AF_INET6, text.c_str(), &address) != 1) return text;
  if (!IN6_IS_ADDR_V4MAPPED(&address)) return TextOf(AF_INET6, address);
  return TextOf(AF_INET, InnerOf(address));
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
  in6_addr address;
  if (inet_pton(AF_INET6, host.c_str(), &address) != 1) return host;
  return PeerOfIpv6(address);
}

}  // namespace annulus
