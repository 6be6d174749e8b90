// What tests of words that choose keys by data share.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "annulus/tensor.h"
#include "attention/pattern.h"
#include "base/rng.h"
#include "sharding/layout.h"
#include "tests/catch.h"

namespace annulus::test {

// Ways to cut a context.
struct Cut {
  Placement placement;
  PartitionSpec partition;
};

inline constexpr Cut kCuts[] = {{Placement::kTokens, {PartitionKind::kBlockCyclic, 1}},
                                {Placement::kTokens, {PartitionKind::kBlockCyclic, 3}},
                                {Placement::kTokens, {PartitionKind::kContiguous, 1}},
                                {Placement::kTokens, {PartitionKind::kZigzag, 1}},
                                {Placement::kHeads, {PartitionKind::kBlockCyclic, 4}},
                                {Placement::kMesh, {PartitionKind::kBlockCyclic, 1}}};

// Of a model with the heads that these tests have.
inline Layout LayoutOf(const Cut& cut, int world, int64_t tokens) {
  constexpr int kHeads = 4, kKvHeads = 2;
  return Layout::Of(cut.placement, world, kHeads, kKvHeads, cut.partition, BlocksOf(tokens));
}

// [tokens, heads, dim]: whole numbers of few values where scores are to tie, and then exact in any
// order; else normal.
inline Tensor MaybeTied(Rng& rng, DType dtype, bool ties, int64_t tokens, int heads, int dim) {
  Tensor tensor(dtype, tokens, heads, dim);
  const int64_t row = int64_t{heads} * dim;
  for (int64_t t = 0; t < tokens; ++t) {
    const uint64_t same = ties ? rng.Below(3) : 0;
    for (int64_t i = 0; i < row; ++i) {
      const float x =
          ties ? static_cast<float>((same + static_cast<uint64_t>(i)) % 2) : rng.Normal();
      Convert(&x, DType::kF32, tensor.data() + static_cast<size_t>(t * row + i) * SizeOf(dtype),
              dtype, 1);
    }
  }
  return tensor;
}

// Whether the pattern is refused in such words.
inline bool IsRefused(const std::string& text, int kv_heads, const std::string& what) {
  const auto pattern = Pattern::Parse(text, kv_heads);
  INFO(pattern.status());
  return absl::IsInvalidArgument(pattern.status()) &&
         absl::StrContains(pattern.status().message(), what);
}

}  // namespace annulus::test
