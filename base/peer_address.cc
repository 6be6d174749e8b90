#include "base/peer_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstdint>

namespace annulus {
namespace {

template <typename Address>
std::string TextOf(int family, const Address& address) {
  char text[INET6_ADDRSTRLEN] = "";
  inet_ntop(family, &address, text, sizeof(text));
  return text;
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

}  // namespace annulus
