// Who a call counts as where bounds are shared: the caller's tenant or, where it has none, its
// address as base/peer_address.h has it. Thread-safe functions.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "runtime/identity/caller.h"

namespace grpc {
class ServerContext;
}  // namespace grpc

namespace annulus {

// Of a call, from whichever of its connections.
std::string PeerOf(const grpc::ServerContext& context, const Caller& caller = {});

// Who a call takes turns as with others that wait: its caller's tenant, or else its connection, so
// that programs behind one address get a turn each.
std::string TurnOf(const grpc::ServerContext& context, const Caller& caller);
// The tenant that takes such a turn; empty: a connection.
std::string TenantOfTurn(absl::string_view turn);

// The host of "HOST:PORT" ("192.0.2.1", "2001:db8::1", "a.example"), addresses in one form whoever
// wrote them; and of what gRPC says of a connection.
std::string HostOf(absl::string_view endpoint);
std::string HostOfUri(absl::string_view uri);

// "localhost", or an address that only this machine reaches.
bool IsLoopbackHost(absl::string_view host);

// The same of what gRPC says of a connection: "ipv4:192.0.2.1:80", "ipv6:%5B2001:db8::1%5D:80".
// What is neither counts as it stands.
std::string PeerOfUri(absl::string_view uri);

}  // namespace annulus
