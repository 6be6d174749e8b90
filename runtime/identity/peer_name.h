// Who a call counts as where bounds are shared: its caller's tenant or, where it has none, its
// address. Thread-safe function.
#pragma once

#include <string>

#include "base/peer_address.h"
#include "runtime/identity/caller.h"

namespace annulus {

// Empty for calls of the process itself, which come from nowhere.
inline std::string PeerOf(const Caller& caller) {
  if (!caller.tenant.empty()) return TenantPeer(caller.tenant);
  return PeerOfUri(caller.client);
}

}  // namespace annulus
