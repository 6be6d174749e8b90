// Who tenants and connections count as where bounds are shared (shared_bound.h): tenants by name,
// others by address. Thread-safe functions.
#pragma once

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

struct sockaddr;

namespace annulus {

inline constexpr absl::string_view kTenantPeer = "tenant ";  // before its name

inline std::string TenantPeer(absl::string_view tenant) {
  return absl::StrCat(kTenantPeer, tenant);
}

// "192.0.2.1", or "2001:db8::" of any address of that /64 network, since whoever has one address of
// it has them all; IPv4 in IPv6 is IPv4. "local" of what is neither.
std::string PeerOf(const sockaddr& address);

// The same of what gRPC says of a connection: "ipv4:192.0.2.1:80", "ipv6:%5B2001:db8::1%5D:80".
// What is neither counts as it stands.
std::string PeerOfUri(absl::string_view uri);

// The host of "HOST:PORT" ("192.0.2.1", "2001:db8::1", "a.example"), addresses in one form whoever
// wrote them; and of what gRPC says of a connection.
std::string HostOf(absl::string_view endpoint);
std::string HostOfUri(absl::string_view uri);

// "localhost", or an address that only this machine reaches.
bool IsLoopbackHost(absl::string_view host);

}  // namespace annulus
