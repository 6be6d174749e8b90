// Who a call counts as where bounds are shared: the caller's tenant or, where it has none, its
// address (runtime/identity/peer_name.h). Thread-safe functions.
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

// "localhost", or an address that only this machine reaches.
bool IsLoopbackHost(absl::string_view host);

}  // namespace annulus
