// How far work must be cut so that thread blocks that each take the largest part left end together.
// Pure.
#pragma once

#include <cstdint>
#include <vector>

namespace annulus::cuda {

// The sizes of `count` equal parts of `size`: part i is [PartBegin(i), PartBegin(i + 1)).
constexpr int64_t PartCount(int64_t size, int64_t most) {
  return (size + most - 1) / most;
}
constexpr int64_t PartBegin(int64_t size, int64_t parts, int64_t i) {
  return size * i / parts;
}

// The largest size of a part, `least` or more, with which `slots` thread blocks are busy for at
// most 2 % longer than if they shared the work evenly; if none is so good, that with which they end
// first. A part takes its size and `overhead`. What is cut must be merged again, so that parts are
// no smaller than that needs. No part is cut if the longest size is returned, or a larger one.
int64_t LargestPart(const std::vector<int64_t>& sizes, int slots, int64_t overhead, int64_t least);

}  // namespace annulus::cuda
