// Where the KV of a context lies: how its (KV head, block of 64 tokens) are spread over ranks.
// Plain values.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace annulus {

// Which of the two is cut over the ranks: "tokens", "heads", or both as a "mesh".
enum class Placement { kTokens, kHeads, kMesh };
absl::StatusOr<Placement> ParsePlacement(absl::string_view text);
absl::string_view Name(Placement placement);

// No unit of a block-cyclic partition is larger.
inline constexpr int64_t kUnitBlocksMax = int64_t{1} << 30;

enum class PartitionKind { kContiguous, kZigzag, kBlockCyclic };

// How tokens are cut:
//   contiguous      rank r owns one range; ranges differ by at most one block
//   zigzag          2·world chunks; rank r owns chunks r and 2·world − 1 − r (causal work balances)
//   block-cyclic:N  blocks go round the ranks N at a time; the only kind that can grow
//   striped         block-cyclic:1
struct PartitionSpec {
  PartitionKind kind = PartitionKind::kZigzag;
  int64_t unit_blocks = 1;  // block-cyclic only, ≥ 1

  // "zigzag", "contiguous", "striped", "block-cyclic:N". INVALID_ARGUMENT names the text.
  static absl::StatusOr<PartitionSpec> Parse(absl::string_view text);
  std::string ToString() const;
  friend bool operator==(const PartitionSpec&, const PartitionSpec&) = default;
};

}  // namespace annulus
