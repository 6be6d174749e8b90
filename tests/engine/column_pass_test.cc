// Column passes over ranks: at every number of ranks, placement and cut the same keys are kept, and
// they are those of the float64 reference, ties included; their rows are gathered as they lie.
#include <cmath>
#include <cstring>

#include "absl/strings/match.h"
#include "attention/reference/columns.h"
#include "base/rng.h"
#include "runtime/engine/column_pass.h"
#include "tests/catch.h"
#include "tests/engine/selection_inputs.h"

namespace annulus {
namespace {

struct Question {
  int64_t kv_tokens, q_begin, q_tokens;
  DType dtype;
  KeepRule rule;
};

struct Inputs {
  Inputs(Rng& rng, const ContextSpec& spec, const Question& of, bool ties)
      : q(test::MaybeTied(rng, spec.dtype, ties, of.q_tokens, spec.heads, spec.head_dim)),
        k(test::MaybeTied(rng, spec.dtype, ties, of.kv_tokens, spec.kv_heads, spec.head_dim)),
        v(test::MaybeTied(rng, spec.dtype, false, of.kv_tokens, spec.kv_heads, spec.v_head_dim)) {}

  Tensor q, k, v;
};

ContextSpec SpecOf(DType dtype, int heads, bool v_is_k_prefix) {
  ContextSpec spec;
  spec.heads = heads;
  spec.kv_heads = 4;
  spec.head_dim = 24;
  spec.v_head_dim = 16;
  spec.dtype = dtype;
  spec.v_is_k_prefix = v_is_k_prefix;
  return spec;
}

// What a rank does not hold it cannot look at.
KvTable TableOf(const Inputs& inputs, const Layout& layout, int rank) {
  KvTable table = KvTable::FromTensors(inputs.k, inputs.v);
  const BlockSet held = layout.Blocks(rank);
  for (int64_t block = 0; block < table.blocks(); ++block) {
    for (int head = 0; head < table.kv_heads(); ++head) {
      bool has = held.Contains(block);
      bool of_head = false;
      ForEachHead(layout.KvHeads(rank), [&](int other) { of_head |= other == head; });
      if (!(has && of_head)) table.Set(head, block, {});
    }
  }
  return table;
}

struct Kept {
  KeyListData list;
  Tensor k, v;
};

Kept Run(const ContextSpec& spec, const Question& of, const Inputs& inputs, const Layout& layout,
         ThreadPool* pool) {
  const ColumnPass pass(spec, layout, {of.q_begin, of.q_begin + of.q_tokens}, of.kv_tokens);
  REQUIRE(pass.Check().ok());
  ColumnPass::Merge merge(pass);
  const float scale = 1.0f / std::sqrt(static_cast<float>(spec.head_dim));
  for (const ColumnTrip trip : kCompressTrips) {
    for (int rank = 0; rank < layout.world(); ++rank) {
      if (!pass.TakesPart(rank)) continue;
      const KvTable table = TableOf(inputs, layout, rank);
      const SelectKeys keys{.kv = &table, .space = &HostMemory()};
      const Buffer asked = merge.Ask(rank, trip, inputs.q);
      REQUIRE(asked.size() == pass.AskedBytes(rank, trip));
      const auto answer =
          trip == ColumnTrip::kSums    ? pass.Sums(rank, asked.data(), scale, keys, {pool})
          : trip == ColumnTrip::kVotes ? pass.Votes(rank, asked.data(), scale, keys, {pool})
                                       : pass.KeptRows(rank, merge.kept(), keys);
      INFO(answer.status());
      REQUIRE(answer.ok());
      if (!answer->empty()) {
        CHECK(absl::IsDataLoss(merge.Add(rank, trip, answer->span().subspan(1))));
      }
      REQUIRE(merge.Add(rank, trip, answer->span()).ok());
    }
    if (trip == ColumnTrip::kSums) REQUIRE(merge.EndSums().ok());
    if (trip == ColumnTrip::kVotes) merge.Choose(of.rule);
  }
  Kept kept{merge.kept(), Tensor(spec.dtype, merge.k().tokens(), 4, spec.head_dim), {}};
  std::memcpy(kept.k.data(), merge.k().data(), merge.k().size_bytes());
  if (!spec.v_is_k_prefix) {
    kept.v = Tensor(spec.dtype, merge.v().tokens(), 4, spec.v_head_dim);
    std::memcpy(kept.v.data(), merge.v().data(), merge.v().size_bytes());
  }
  return kept;
}

void CheckAgainstReference(const ContextSpec& spec, const Question& of, const Inputs& inputs,
                           const Kept& kept) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(spec.head_dim));
  for (int head = 0; head < spec.kv_heads; ++head) {
    const std::vector<int32_t> expected =
        ReferenceSnapKv(ReferenceVotes(inputs.q, of.q_begin, inputs.k, head, of.kv_tokens, scale),
                        of.rule.keep, of.rule.recent, of.rule.pool_width);
    const std::vector<int32_t> got(kept.list.keys.begin() + kept.list.begin[head],
                                   kept.list.keys.begin() + kept.list.begin[head + 1]);
    CHECK(got == expected);
    for (size_t i = 0; i < got.size(); ++i) {
      const auto row = static_cast<int64_t>(i);
      REQUIRE(std::memcmp(kept.k.view().Row(row, head), inputs.k.view().Row(got[i], head),
                          static_cast<size_t>(spec.head_dim) * SizeOf(spec.dtype)) == 0);
      if (spec.v_is_k_prefix) continue;
      REQUIRE(std::memcmp(kept.v.view().Row(row, head), inputs.v.view().Row(got[i], head),
                          static_cast<size_t>(spec.v_head_dim) * SizeOf(spec.dtype)) == 0);
    }
  }
}

const Question kQuestions[] = {
    {500, 468, 32, DType::kF32, {.keep = 100, .recent = 32, .pool_width = 7}},
    {700, 630, 70, DType::kBF16, {.keep = 64, .recent = 0}},
    {129, 40, 200, DType::kF16, {.keep = 33, .recent = 33, .pool_width = 3}},
    {60, 59, 1, DType::kF32, {.keep = 100, .recent = 10}},
};
const PartitionSpec kCuts[] = {{PartitionKind::kBlockCyclic, 1},
                               {PartitionKind::kBlockCyclic, 3},
                               {PartitionKind::kZigzag, 1}};

TEST_CASE("every number of ranks keeps the keys that the reference keeps") {
  Rng rng(51);
  ThreadPool pool(3);
  for (const Question& of : kQuestions) {
    for (const bool ties : {false, true}) {
      const bool prefix = rng.Below(2) == 0;
      const ContextSpec spec = SpecOf(of.dtype, rng.Below(2) == 0 ? 4 : 12, prefix);
      const Inputs inputs(rng, spec, of, ties);
      std::optional<KeyListData> first;
      for (const int world : {1, 2, 3, 4, 7}) {
        for (const PartitionSpec& cut : kCuts) {
          for (const Placement placement :
               {Placement::kTokens, Placement::kHeads, Placement::kMesh}) {
            CAPTURE(of.kv_tokens, ties, world, cut.ToString(), static_cast<int>(placement));
            const Layout layout = Layout::Of(placement, world, spec.heads, spec.kv_heads, cut,
                                             BlocksOf(of.kv_tokens));
            const Kept kept = Run(spec, of, inputs, layout, world % 2 == 0 ? &pool : nullptr);
            if (!first.has_value()) CheckAgainstReference(spec, of, inputs, kept);
            if (!first.has_value()) first = kept.list;
            REQUIRE(kept.list.keys == first->keys);
            REQUIRE(kept.list.begin == first->begin);
            if (world == 7) CheckAgainstReference(spec, of, inputs, kept);
          }
        }
      }
    }
  }
}

TEST_CASE("a KV head that several ranks hold votes once") {
  // Query heads that no even cut separates by KV head: two ranks of each head group hold one.
  Rng rng(52);
  const Question of{300, 290, 10, DType::kF32, {.keep = 40, .recent = 10, .pool_width = 5}};
  const ContextSpec spec = SpecOf(DType::kF32, 12, false);
  const Inputs inputs(rng, spec, of, false);
  const Layout layout = Layout::Of(Placement::kHeads, 7, 12, 4, {PartitionKind::kBlockCyclic, 1},
                                   BlocksOf(of.kv_tokens));
  int holders = 0;
  for (int rank = 0; rank < 7; ++rank) ForEachHead(layout.KvHeads(rank), [&](int) { ++holders; });
  REQUIRE(holders > 4);
  CheckAgainstReference(spec, of, inputs, Run(spec, of, inputs, layout, nullptr));
}

TEST_CASE("what is too much, and what is no list of kept keys, is refused") {
  const ContextSpec spec = SpecOf(DType::kF32, 4, false);
  const auto layout = [&](int64_t tokens) {
    return Layout::Of(Placement::kTokens, 1, 4, 4, {PartitionKind::kBlockCyclic, 1},
                      BlocksOf(tokens));
  };
  const int64_t many = int64_t{1} << 27;
  const absl::Status status = ColumnPass(spec, layout(many), {0, 1}, many).Check();
  CHECK(absl::StrContains(status.message(), "expected at most select_bytes_max"));
  const ColumnPass pass(spec, layout(100), {0, 1}, 100);
  Rng rng(53);
  const Inputs inputs(rng, spec, {100, 0, 1, DType::kF32, {}}, false);
  const KvTable table = KvTable::FromTensors(inputs.k, inputs.v);
  KeyListData list{.unit = KeyListData::Unit::kTokens, .heads = 4, .begin = {0, 1, 2, 3, 4}};
  const auto rows = [&](std::vector<int32_t> keys) {
    list.keys = std::move(keys);
    return pass.KeptRows(0, list, {.kv = &table, .space = &HostMemory()}).status();
  };
  CHECK(rows({0, 99, 5, 5}).ok());
  CHECK(absl::IsInvalidArgument(rows({0, 100, 5, 5})));
  CHECK(absl::IsInvalidArgument(rows({0, 9, -1, 5})));
  CHECK(absl::IsInvalidArgument(rows({0, 9, 5})));
  list.begin = {0, 2, 2, 2, 4};
  CHECK(absl::IsInvalidArgument(rows({5, 5, 6, 7})));
}

}  // namespace
}  // namespace annulus
