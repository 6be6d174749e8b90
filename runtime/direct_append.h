// Appends whose tensors bypass the service: what the client library and the coordinator say to each
// other. Plain values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "annulus/types.h"

namespace annulus {

// An append whose tensors go straight to the workers that own them (AppendGrant).
struct DirectAppend {
  ContextId context = 0;
  int layer = 0;
  int64_t start = 0;   // must equal the layer's committed tokens
  int64_t tokens = 0;  // ≥ 1
  RequestKey key = {};
};

// Leave to upload one DirectAppend, once, within a minute or less. What each rank gets follows from
// the spec and the number of ranks (store/append_cut.h); those that hold the same get the same.
struct AppendGrant {
  uint64_t id = 0;
  std::string secret;  // whoever knows it may write: to be kept from logs
  ContextSpec spec;
  int world = 0;                       // ranks
  std::vector<std::string> addresses;  // the data port of each holder, "host:port"
  std::vector<int> ranks;              // that they hold
};

}  // namespace annulus
