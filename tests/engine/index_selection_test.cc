// Keys chosen by an index, over the rows of a track: every number of ranks and cut gives the keys
// of the definition in float64, ties included, in prefill as in decode.
#include <cmath>

#include "absl/strings/match.h"
#include "attention/pattern.h"
#include "base/rng.h"
#include "runtime/engine/selection.h"
#include "tests/attention/reference_lists.h"
#include "tests/catch.h"
#include "tests/engine/selection_inputs.h"

namespace annulus {
namespace {

constexpr int kKvHeads = 2, kDim = 16;

struct Question {
  std::string word;
  int64_t kv_tokens = 0;
  int64_t q_begin = 0;
  int64_t q_tokens = 0;
  DType dtype = DType::kF32;
  int index_heads = 5;  // of dsa
};

Tensor Filled(Rng& rng, DType dtype, bool ties, int64_t tokens, int heads) {
  return test::MaybeTied(rng, dtype, ties, tokens, heads, kDim);
}

struct Inputs {
  Inputs(Rng& rng, const Question& question, bool ties)
      : selector(Pattern::Parse(question.word, kKvHeads)->selectors().at(0)),
        q(Filled(rng, question.dtype, ties, question.q_tokens,
                 selector->index()->weighs ? question.index_heads : kKvHeads)),
        k(Filled(rng, question.dtype, ties, question.kv_tokens, 1)) {
    if (!selector->index()->weighs) return;
    for (int64_t i = 0; i < q.tokens() * q.heads(); ++i) {
      weights.push_back(ties ? static_cast<float>(rng.Below(3)) - 1 : rng.Normal());
    }
  }

  std::shared_ptr<const Selector> selector;
  Tensor q;
  Tensor k;
  std::vector<float> weights;
};

// Over ranks one after the other, as a caller of the service has it done.
absl::StatusOr<KeyListData> TrySelect(const Inputs& inputs, const TensorView& q,
                                      const float* weights, int64_t q_begin, const TensorView& k,
                                      const Layout& layout, ThreadPool* pool) {
  const int lists = inputs.selector->index()->lists;
  const SelectRows rows{.selector = inputs.selector.get(),
                        .q = q,
                        .q_begin = q_begin,
                        .heads = {0, lists},
                        .group = lists,
                        .kv_tokens = k.tokens};
  const Selection selection(rows, layout);
  REQUIRE(selection.Check().ok());
  Selection::Merge merge(selection, q, q.dtype);
  for (int rank = 0; rank < layout.world(); ++rank) {
    KvTable table = KvTable::FromTensors(k, k);
    // What it does not hold it cannot look at.
    const BlockSet held = layout.Blocks(rank);
    for (int64_t block = 0; block < table.blocks(); ++block) {
      if (held.Intersect(BlockSet::Range(block, 1)).empty()) table.Set(0, block, {});
    }
    const auto answer =
        selection.AnswerByIndex(rank, q, weights, {.kv = &table, .space = &HostMemory()}, {pool});
    REQUIRE(answer.ok());
    REQUIRE(merge.Add(rank, answer->span()).ok());
  }
  return std::move(merge).Finish();
}

template <typename... Args>
KeyListData Select(const Args&... args) {
  auto list = TrySelect(args...);
  INFO(list.status());
  REQUIRE(list.ok());
  return *std::move(list);
}

Layout Cut(const PartitionSpec& partition, int world, int64_t tokens) {
  return Layout::Of(Placement::kTokens, world, 1, 1, partition, BlocksOf(tokens));
}

const PartitionSpec kCuts[] = {{PartitionKind::kBlockCyclic, 1},
                               {PartitionKind::kBlockCyclic, 3},
                               {PartitionKind::kContiguous, 1},
                               {PartitionKind::kZigzag, 1}};

TEST_CASE("an index chooses what its definition does at every number of ranks, ties included") {
  Rng rng(2311);
  ThreadPool pool(2);
  for (const Question& question :
       std::vector<Question>{{"dsa(64)", 1000, 999, 1},
                             {"dsa(100)", 700, 600, 100},
                             {"dsa(32)", 700, 690, 10, DType::kBF16, 20},
                             {"dsa(1)", 300, 200, 40, DType::kF16, 1},
                             {"dsa(130)", 260, 0, 260},
                             {"dsa(64)", 400, 1000, 3},
                             {"dsa(500)", 400, 390, 10},
                             {"msa(128,4)", 1500, 1499, 1},
                             {"msa(128,3)", 1500, 1300, 200, DType::kBF16},
                             {"msa(192,2)", 1500, 1300, 40, DType::kF16},
                             {"msa(64,4)", 900, 100, 300},
                             {"msa(16,9)", 700, 600, 100},
                             {"msa(64,1)", 500, 450, 50},
                             {"msa(128,16)", 9000, 8999, 1},
                             // Looked at in f32 first (select/screen.h), by few ranks.
                             {"dsa(64)", 20000, 19999, 1, DType::kBF16, 32},
                             {"dsa(20)", 20000, 19993, 7, DType::kF32, 20},
                             {"dsa(16)", 2300, 2280, 20, DType::kBF16, 72}}) {
    for (const bool ties : {false, true}) {
      const Inputs inputs(rng, question, ties);
      const float* weights = inputs.weights.empty() ? nullptr : inputs.weights.data();
      const CallList expected = test::ReferenceList(question.word, inputs.q, question.q_begin,
                                                    inputs.k, question.kv_tokens, inputs.weights);
      for (const int world : {1, 2, 3, 4, 7}) {
        for (const PartitionSpec& cut : kCuts) {
          CAPTURE(question.word, world, cut.ToString(), ties);
          const KeyListData list =
              Select(inputs, inputs.q, weights, question.q_begin, inputs.k,
                     Cut(cut, world, question.kv_tokens), world % 2 == 0 ? &pool : nullptr);
          REQUIRE(list.unit == expected.data->unit);
          REQUIRE(list.heads == expected.data->heads);
          REQUIRE(list.begin == expected.data->begin);
          REQUIRE(list.keys == expected.data->keys);
          REQUIRE(KeyList::Make(list).ok());
        }
      }
    }
  }
}

TEST_CASE("an index chooses for each token of a prefill what it chooses in decode") {
  Rng rng(2312);
  for (const char* word : {"dsa(70)", "msa(64,3)"}) {
    const Question question{word, 520, 0, 520};
    const Inputs inputs(rng, question, true);
    const float* weights = inputs.weights.empty() ? nullptr : inputs.weights.data();
    const KeyListData all =
        Select(inputs, inputs.q, weights, 0, inputs.k, Cut(kCuts[0], 3, 520), nullptr);
    for (int64_t t = 0; t < 520; t += 13) {
      const KeyListData one =
          Select(inputs, inputs.q.view().Tokens(t, 1),
                 weights == nullptr ? nullptr : weights + t * inputs.q.heads(), t,
                 inputs.k.view().Tokens(0, t + 1), Cut(kCuts[1], 2, t + 1), nullptr);
      for (int head = 0; head < all.heads; ++head) {
        const auto keys = [head](const KeyListData& list, int64_t rows, int64_t row) {
          const auto at = list.begin.begin() + head * rows + row;
          return std::vector<int32_t>(list.keys.begin() + at[0], list.keys.begin() + at[1]);
        };
        REQUIRE(keys(all, 520, t) == keys(one, 1, 0));
      }
    }
  }
}

TEST_CASE("a score that is no number is refused, and of a weight 0 too") {
  Rng rng(2313);
  const Question question{"dsa(2)", 100, 99, 1, DType::kF32, 2};
  Inputs inputs(rng, question, false);
  const float huge = std::numeric_limits<float>::max();
  for (int c = 0; c < kDim; ++c) inputs.k.f32()[40 * kDim + c] = huge;
  for (int64_t i = 0; i < inputs.q.view().size(); ++i) inputs.q.f32()[i] = 1;
  inputs.weights = {0.0f, 1e-30f};
  for (const int world : {1, 3}) {
    const auto list = TrySelect(inputs, inputs.q, inputs.weights.data(), 99, inputs.k,
                                Cut(kCuts[0], world, 100), nullptr);
    CHECK(absl::IsInvalidArgument(list.status()));
    CHECK(absl::StrContains(list.status().message(), "dsa(2): row 0, head 0 scores a unit beyond"));
  }
}

TEST_CASE("words of an index refuse by position what they cannot be") {
  const auto refused = [](const std::string& text, const std::string& what) {
    return test::IsRefused(text, kKvHeads, what);
  };
  CHECK(refused("dsa()", "expected"));
  CHECK(refused("dsa(0)", "at 5: \"0\"; expected a number from 1"));
  CHECK(refused("dsa(536870912)", "at 5: 536870912; expected at most list_keys_max"));
  CHECK(refused("msa(100,3)", "at 5: 100; expected a divisor of 64 or a multiple of it"));
  CHECK(refused("msa(128)", "expected"));
  CHECK(refused("msa(128,0)", "at 9: \"0\"; expected a number from 1"));
}

}  // namespace
}  // namespace annulus
