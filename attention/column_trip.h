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
  kSpans,      // the same summed over spans of keys and of distances, and the keys' sums
};
inline constexpr ColumnTrip kColumnTrips[] = {ColumnTrip::kSums, ColumnTrip::kVotes,
                                              ColumnTrip::kRows, ColumnTrip::kDiagonals,
                                              ColumnTrip::kSpans};
// Those that Compress makes. A word that chooses by columns makes kSums and then its own.
inline constexpr ColumnTrip kCompressTrips[] = {ColumnTrip::kSums, ColumnTrip::kVotes,
                                                ColumnTrip::kRows};

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
    case ColumnTrip::kSpans:
      return "spans";
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
