// SharedBound: a bound that callers share, and what of it is taken. One peer, whoever that is where
// the bound is, has at most half, so that others find the other half. Thread-compatible.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace annulus {

// What one peer may have of a bound that it shares with others.
constexpr int64_t ShareOf(int64_t bound) {
  return bound - bound / 2;
}

// A bound, as one peer finds it.
struct BoundUse {
  int64_t max = 0;
  int64_t in_use = 0;  // of all peers
  int64_t by_peer = 0;
  bool is_nobody = false;  // whose share is all that is left

  constexpr bool HasShare(int64_t more) const {
    return is_nobody || more <= ShareOf(max) - by_peer;
  }
  constexpr bool HasRoom(int64_t more) const { return more <= max - in_use && HasShare(more); }
};

// How errors speak of a bound.
struct BoundWords {
  absl::string_view name;
  absl::string_view value = "";  // what is to be known of its value
  absl::string_view peer = "this caller";
  absl::string_view taker = "this call";
  absl::string_view advice = "try again later";
};

// RESOURCE_EXHAUSTED, which names the bound, its value and what is in the way: `more` would be too
// many.
absl::Status AboveBound(const BoundWords& words, const BoundUse& use, int64_t more);

class SharedBound {
 public:
  SharedBound(const BoundWords& words, int64_t max) : words_(words), max_(max) {}

  // As the peer finds it.
  BoundUse UseBy(const std::string& peer) const;
  // Whether the peer may have so much more, as AboveBound; takes nothing. What is nobody's in
  // particular (an empty name) may take all that is left.
  absl::Status Check(const std::string& peer, int64_t more) const;
  // The peer has more from now on, or less. What is there already may be beyond the bound.
  void Add(const std::string& peer, int64_t count);

  int64_t max() const { return max_; }
  int64_t in_use() const { return in_use_; }

 private:
  const BoundWords words_;  // of literals
  const int64_t max_;
  int64_t in_use_ = 0;
  std::unordered_map<std::string, int64_t> peers_;  // those that have some
};

}  // namespace annulus
