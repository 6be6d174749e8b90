// Tokens in the raster order of a grid of up to three axes, the last one fastest: what the words
// for images and videos share. Private to the pattern's implementation.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "attention/pattern_reader.h"

namespace annulus {

struct Grid {
  static constexpr size_t kAxes = PatternReader::kAxesMax;
  using Place = std::array<int64_t, kAxes>;

  Place extents = {1, 1, 1};  // axes that are not there come first
  size_t axes = 0;            // that are there

  int64_t tokens() const { return extents[0] * extents[1] * extents[2]; }
  int64_t row_tokens() const { return extents[2]; }
  Place PlaceOf(int64_t token) const {
    return {token / (extents[1] * extents[2]), token / extents[2] % extents[1], token % extents[2]};
  }
  int64_t TokenAt(const Place& place) const {
    return (place[0] * extents[1] + place[1]) * extents[2] + place[2];
  }
};

// Of "HxW" and the like. INVALID_ARGUMENT beyond 2^40 tokens or with fewer axes than `axes_min`.
absl::StatusOr<Grid> ReadGrid(const PatternReader& reader, const PatternReader::Value& value,
                              size_t axes_min);

}  // namespace annulus
