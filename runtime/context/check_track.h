// Whether a word that chooses by a track's rows can choose by this one's.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "annulus/types.h"
#include "attention/selector.h"

namespace annulus {

// INVALID_ARGUMENT names what differs. `track`: of its layer (SpecOfLayer); `ratio`: tokens to a
// row. REQUIRES: a word of an index.
absl::Status CheckTrack(const Selector& word, const ContextSpec& track, int64_t ratio);

}  // namespace annulus
