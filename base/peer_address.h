// Who a connection counts as where bounds are shared among addresses. Thread-safe function.
#pragma once

#include <string>

struct sockaddr;

namespace annulus {

// "192.0.2.1", or "2001:db8::" of any address of that /64 network, since whoever has one address of
// it has them all; IPv4 in IPv6 is IPv4. "local" of what is neither.
std::string PeerOf(const sockaddr& address);

}  // namespace annulus
