// Random planning problems, small enough to check block by block and token by token.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/pattern.h"
#include "base/rng.h"
#include "sharding/plan.h"
#include "tests/attention/random_list.h"
#include "tests/catch.h"

namespace annulus {

inline std::string RandomPattern(Rng& rng, int kv_heads, int depth = 0) {
  const auto number = [&](int64_t low, int64_t high) {
    return std::to_string(rng.Between(low, high));
  };
  switch (rng.Below(depth > 1 ? 7 : 10)) {
    case 0:
      return "full";
    case 1:
      return "causal";
    case 2:
      return "window(" + number(1, 300) + "," + number(0, 100) + ")";
    case 3:
      return "sink(" + number(1, 200) + ")";
    case 4:
      return "s2(64," + number(1, 3) + "," + number(1, 5) + ")";
    case 5:
      return "s2(32," + number(1, 4) + "," + number(1, 7) + ",dense_heads=1)";
    case 6:
      return "power(" + number(16, 80) + "," + number(1, 3) + "," + number(1, 2) + ")";
    case 7:
      return RandomPattern(rng, kv_heads, depth + 1) + " | " +
             RandomPattern(rng, kv_heads, depth + 1);
    case 8:
      return "(" + RandomPattern(rng, kv_heads, depth + 1) + ") & causal";
    default:
      if (kv_heads == 1 || depth > 0) return "window(100) | sink(10)";
      return "heads(0: " + RandomPattern(rng, kv_heads, depth + 1) + "; 1-" +
             std::to_string(kv_heads - 1) + ": " + RandomPattern(rng, kv_heads, depth + 1) + ")";
  }
}

inline PartitionSpec RandomSpec(Rng& rng) {
  switch (rng.Below(4)) {
    case 0:
      return {PartitionKind::kContiguous, 1};
    case 1:
      return {PartitionKind::kBlockCyclic, 1};
    case 2:
      return {PartitionKind::kBlockCyclic, rng.Between(1, 4)};
    default:
      return {PartitionKind::kZigzag, 1};
  }
}

// A problem that lies as it does under --placement: KV cut over tokens like the queries.
inline Problem MakeProblem(int64_t q_tokens, int64_t kv_tokens, int heads, int kv_heads, int world,
                           const std::string& pattern, PartitionSpec spec = {},
                           Home home = Home::kOwners) {
  auto parsed = Pattern::Parse(pattern, kv_heads);
  INFO(pattern << ": " << parsed.status());
  REQUIRE(parsed.ok());
  Problem problem{.q_tokens = q_tokens,
                  .kv_tokens = kv_tokens,
                  .heads = heads,
                  .kv_heads = kv_heads,
                  .head_dim = 64,
                  .v_head_dim = 64,
                  .pattern = *std::move(parsed),
                  .home = home,
                  .home_partition = spec,
                  .kv = Layout::Tokens(world, heads, kv_heads, spec, BlocksOf(kv_tokens))};
  return problem;
}

inline Problem RandomProblem(Rng& rng) {
  const int worlds[] = {1, 2, 3, 4, 7};
  const int world = worlds[rng.Below(5)];
  const int kv_heads = static_cast<int>(rng.Between(1, 4));
  const int heads = kv_heads * static_cast<int>(rng.Between(1, 3));
  const int64_t kv_tokens = rng.Below(4) == 0 ? rng.Between(1, 130) : rng.Between(1, 1400);
  const int64_t q_tokens = rng.Below(2) == 0   ? kv_tokens
                           : rng.Below(2) == 0 ? 1
                                               : rng.Between(1, kv_tokens);
  Problem problem =
      MakeProblem(q_tokens, kv_tokens, heads, kv_heads, world, RandomPattern(rng, kv_heads),
                  RandomSpec(rng), rng.Below(2) == 0 ? Home::kOwners : Home::kCaller);
  // Queries anywhere, before, among and beyond the keys, which may be a part of the context's.
  if (rng.Below(3) == 0) {
    problem.q_start = rng.Between(0, kv_tokens + 150);
    problem.q_tokens = rng.Below(3) == 0 ? 1 : rng.Between(1, 700);
  }
  if (rng.Below(3) == 0) {
    const int64_t begin = rng.Between(0, kv_tokens - 1);
    problem.keys_end = rng.Between(begin + 1, kv_tokens);
    problem.pattern = problem.pattern.KeysFrom(begin);
  }
  if (rng.Below(4) == 0) {
    const int list_heads = rng.Below(2) == 0 ? 1 : kv_heads;
    RandomList list = MakeRandomList(rng, list_heads, kv_tokens, problem.q_range().end);
    const NamedList named{"x", *KeyList::Make(std::move(list.data))};
    const int64_t first_key = problem.pattern.first_key();
    problem.pattern = Pattern::Parse(rng.Below(2) == 0 ? "list(x)" : "list(x) & causal", kv_heads)
                          ->Bind({&named, 1}, heads)
                          ->KeysFrom(first_key);
  }
  problem.v_head_dim = static_cast<int>(8 * rng.Between(1, 8));
  problem.v_is_k_prefix = rng.Below(4) == 0;
  problem.dtype = rng.Below(2) == 0 ? DType::kF32 : DType::kBF16;
  // The context may lie anywhere, with room for more than it holds.
  const Placement placements[] = {Placement::kTokens, Placement::kHeads, Placement::kMesh};
  const int64_t room = rng.Below(2) == 0 ? 0 : rng.Between(0, 20);
  const Placement placement = placements[rng.Below(3)];
  const int groups = MeshOf(placement, world).head_groups;
  std::vector<int64_t> weights;
  for (int head = 0; head < kv_heads; ++head) weights.push_back(int64_t{1} << rng.Below(8));
  problem.kv = Layout::Of(placement, world,
                          rng.Below(2) == 0 ? HeadMap::Even(groups, heads, kv_heads)
                                            : HeadMap::ByWeight(groups, heads, weights),
                          rng.Below(2) == 0 ? problem.home_partition : RandomSpec(rng),
                          BlocksOf(kv_tokens) + room);
  return problem;
}

inline std::string Describe(const Problem& problem) {
  return absl::StrCat(
      "q ", problem.q_tokens, " from ", problem.q_range().begin, " kv ", problem.kv_tokens,
      " keys ", problem.keys().begin, ":", problem.keys().end, " heads ", problem.heads, "/",
      problem.kv_heads, " world ", problem.world(), " kv mesh ", problem.kv.mesh().head_groups, "x",
      problem.kv.mesh().token_groups, " ", problem.kv.tokens().spec().ToString(), " home ",
      problem.home == Home::kCaller ? "caller" : problem.home_partition.ToString(), " pattern ",
      problem.pattern.text());
}

// By (KV head, query block, KV block): whether some existing query of the problem sees some
// existing key, straight from the pattern's meaning.
class AllowedBlocks {
 public:
  explicit AllowedBlocks(const Problem& problem)
      : blocks_(BlocksOf(problem.kv_tokens)), q_blocks_(BlocksOf(problem.q_range().end)) {
    allowed_.resize(static_cast<size_t>(problem.kv_heads * q_blocks_ * blocks_));
    for (int head = 0; head < problem.kv_heads; ++head) {
      for (int64_t q = problem.q_range().begin; q < problem.q_range().end; ++q) {
        for (int64_t k = problem.keys().begin; k < problem.keys().end; ++k) {
          if (!At(head, q / 64, k / 64) && problem.pattern.Allows(head, q, k)) {
            allowed_[Index(head, q / 64, k / 64)] = true;
          }
        }
      }
    }
  }

  int64_t blocks() const { return blocks_; }
  bool At(int kv_head, int64_t q_block, int64_t kv_block) const {
    return allowed_[Index(kv_head, q_block, kv_block)];
  }

 private:
  size_t Index(int head, int64_t q, int64_t k) const {
    return static_cast<size_t>((head * q_blocks_ + q) * blocks_ + k);
  }

  int64_t blocks_;
  int64_t q_blocks_;
  std::vector<bool> allowed_;
};

}  // namespace annulus
