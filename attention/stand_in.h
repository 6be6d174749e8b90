// A list in place of what a word will choose (selector.h): each row sees as many units as
// of any choice, the last ones up to its own, one list for all heads. A call can be planned by it,
// and what it computes be counted, before anybody chooses. Pure function.
#pragma once

#include <cstdint>

#include "annulus/key_list.h"
#include "attention/ranges.h"
#include "attention/selector.h"

namespace annulus {

// Of a word that picks_alike() (selector.h).
KeyListData StandInFor(const Selector& word, TokenRange queries, int64_t kv_tokens);

}  // namespace annulus
