// What a rank knows of a layer of a context beside its pages. It is what a new coordinator is told
// after its predecessor was lost: enough to see which tokens all ranks have alike, and to answer a
// repeated append as the first would have been. Values.
#pragma once

#include <cstdint>

#include "annulus/types.h"
#include "attention/ranges.h"

namespace annulus {

// Which append of its layer this is. The number counts up with every append that is begun, also
// with those that are taken back: a rank with a lower one has missed, or refused, what came later.
struct AppendMark {
  uint64_t append_number = 0;
  RequestKey key = {};

  friend bool operator==(const AppendMark&, const AppendMark&) = default;
};

struct LayerState {
  int64_t tokens = 0;   // stored
  int64_t horizon = 0;  // as in retention.h
  // The last append that was stored, and its tokens. Its key is forgotten with its tokens, unless
  // they were truncated.
  AppendMark last = {};
  TokenRange last_tokens = {};

  friend bool operator==(const LayerState&, const LayerState&) = default;
};

}  // namespace annulus
