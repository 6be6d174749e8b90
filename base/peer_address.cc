#include "base/peer_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"

namespace annulus {
namespace {

template <typename Address>
std::string TextOf(int family, const Address& address) {
  char text[INET6_ADDRSTRLEN] = "";
  inet_ntop(family, &address, text, sizeof(text));
  return text;
}

// Whether `text` is an address of IPv6.
bool ParseIpv6(const std::string& text, sockaddr_in6* address) {
  address->sin6_family = AF_INET6;
  return inet_pton(AF_INET6, text.c_str(), &address->sin6_addr) == 1;
}

}  // namespace

std::string PeerOf(const sockaddr& address) {
  if (address.sa_family == AF_INET) {
    return TextOf(AF_INET, reinterpret_cast<const sockaddr_in&>(address).sin_addr);
  }
  if (address.sa_family != AF_INET6) return "local";
  in6_addr v6 = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  if (IN6_IS_ADDR_V4MAPPED(&v6)) {
    in_addr inner;
    std::copy_n(v6.s6_addr + 12, 4, reinterpret_cast<uint8_t*>(&inner));
    return TextOf(AF_INET, inner);
  }
  std::fill_n(v6.s6_addr + 8, 8, uint8_t{0});
  return TextOf(AF_INET6, v6);
}

std::string HostOf(absl::string_view endpoint) {
  std::string text = absl::StrReplaceAll(endpoint.substr(0, endpoint.rfind(':')),
                                         {{"%5B", ""}, {"%5D", ""}, {"[", ""}, {"]", ""}});
  text.resize(std::min(text.size(), text.find('%')));  // the link of a local address
  sockaddr_in6 address = {};
  if (!ParseIpv6(text, &address)) return text;
  if (IN6_IS_ADDR_V4MAPPED(&address.sin6_addr)) {
    return PeerOf(reinterpret_cast<const sockaddr&>(address));
  }
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

std::string PeerOfUri(absl::string_view uri) {
  if (!absl::StartsWith(uri, "ipv4:") && !absl::StartsWith(uri, "ipv6:")) return std::string(uri);
  std::string host = HostOfUri(uri);
  sockaddr_in6 address = {};
  return ParseIpv6(host, &address) ? PeerOf(reinterpret_cast<const sockaddr&>(address)) : host;
}

}  // namespace annulus
