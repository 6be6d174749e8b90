// The trips of a column pass over the holders of keys (runtime/engine/column_pass.h), and their
// names. Plain values.
#pragma once

#include <optional>

#include "absl/strings/string_view.h"

namespace annulus {

enum class ColumnTrip {
  kSums,       // each query's sum of exponentials over the keys that a holder has
  kVotes,      // each key's weight, by the sums over all keys
  kRows,       // the rows of the keys that are kept
  kDiagonals,  // by the sums over all keys, each head's weights by key and by distance
};
inline constexpr ColumnTrip kColumnTrips[] = {ColumnTrip::kSums, ColumnTrip::kVotes,
                                              ColumnTrip::kRows, ColumnTrip::kDiagonals};
// Those that Compress makes, and those that choose columns and diagonals.
inline constexpr ColumnTrip kCompressTrips[] = {ColumnTrip::kSums, ColumnTrip::kVotes,
                                                ColumnTrip::kRows};
inline constexpr ColumnTrip kDiagonalTrips[] = {ColumnTrip::kSums, ColumnTrip::kDiagonals};

inline absl::string_view Name(ColumnTrip trip) {
  switch (trip) {
    case ColumnTrip::kSums:
      return "sums";
    case ColumnTrip::kVotes:
      return "votes";
    case ColumnTrip::kRows:
      return "rows";
    case ColumnTrip::kDiagonals:
      return "diagonals";
  }
  return "unknown";
}

inline std::optional<ColumnTrip> ParseColumnTrip(absl::string_view name) {
  for (const ColumnTrip trip : kColumnTrips) {
    if (Name(trip) == name) return trip;
  }
  return std::nullopt;
}

}  // namespace annulus
