// Who a call counts as where callers share something: the caller's tenant or, where it has none,
// where its call came from. Thread-safe functions.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "base/peer_address.h"
#include "runtime/identity/caller.h"

namespace annulus {

// Where bounds are shared: the tenant or else the address, from whichever of its connections.
// Empty for calls of the process itself, which come from nowhere.
inline std::string PeerOf(const Caller& caller) {
  return caller.tenant.empty() ? PeerOfUri(caller.client) : TenantPeer(caller.tenant);
}

// Where turns are taken: the tenant or else the connection, so that programs behind one address get
// a turn each.
inline std::string TurnOf(const Caller& caller) {
  return caller.tenant.empty() ? caller.client : TenantPeer(caller.tenant);
}

// The tenant that takes such a turn; empty: a connection.
inline std::string TenantOfTurn(absl::string_view turn) {
  return absl::ConsumePrefix(&turn, kTenantPeer) ? std::string(turn) : std::string();
}

// A number for whoever takes the same turn, for workers. Different ones may have the same, as
// hashes do.
inline uint64_t NumberOf(const Caller& caller) {
  return std::hash<std::string>()(TurnOf(caller));
}

}  // namespace annulus
