// How work is cut so that thread blocks that each take the next part end together. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace annulus::cuda {

// [begin, begin + size) of an item.
struct Part {
  size_t item = 0;
  int64_t begin = 0;
  int64_t size = 0;
};

// Items of these sizes as parts, in the order in which `slots` thread blocks take them, each as
// soon as it is free; a part takes its size and `overhead`. Items stay whole, in their order, if
// the last to end is at most 2 % later than if all was shared evenly. Else those are cut that would
// end later: an item's first part ends with the others, the next thread block goes on with the
// rest. No part of a cut item is smaller than half of `least`. What is cut must be merged again; at
// most about as many items are as there are slots.
std::vector<Part> CutForSlots(const std::vector<int64_t>& sizes, int slots, int64_t overhead,
                              int64_t least);

}  // namespace annulus::cuda
