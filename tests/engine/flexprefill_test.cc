// flexprefill(gamma,tau,min): at every number of ranks, placement and cut the blocks of the
// definition in float64, ties included, of both kinds of heads.
#include <cmath>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "attention/pattern.h"
#include "base/rng.h"
#include "runtime/engine/column_pass.h"
#include "runtime/engine/select_local.h"
#include "sharding/layout.h"
#include "tests/attention/reference_flexprefill.h"
#include "tests/catch.h"
#include "tests/engine/selection_inputs.h"

namespace annulus {
namespace {

using test::Cut, test::kCuts, test::LayoutOf;

constexpr int kHeads = 4, kKvHeads = 2, kDim = 16;

// How rows lie: normal; or equal ones, within few values or within whole blocks, whose weights tie.
enum class Rows { kNormal, kTied, kTiedBlocks };

Tensor Make(Rng& rng, DType dtype, Rows rows, int64_t first, int64_t tokens, int heads) {
  Tensor made = test::MaybeTied(rng, dtype, rows == Rows::kTied, tokens, heads, kDim);
  if (rows != Rows::kTiedBlocks) return made;
  // Every third block is the same.
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < heads * kDim; ++i) {
      const float x = static_cast<float>(((first + t) / 128 % 3 + i) % 3);
      Convert(&x, DType::kF32,
              made.data() + static_cast<size_t>(t * heads * kDim + i) * SizeOf(dtype), dtype, 1);
    }
  }
  return made;
}

struct Question {
  test::FlexPrefillWord word;
  float scale;
  int64_t kv_tokens, q_begin, q_tokens;
  DType dtype = DType::kF32;
};

const Question kQuestions[] = {
    {{"flexprefill(0.57,0.1,1)", 0.57, 0.1, 1}, 0.05f, 1100, 0, 1100},
    {{"flexprefill(0.57,0.1,1)", 0.57, 0.1, 1}, 0.5f, 1100, 0, 1100},
    {{"flexprefill(0.83,0.05,200)", 0.83, 0.05, 200}, 0.3f, 1000, 300, 600, DType::kBF16},
    {{"flexprefill(0.4,0.3,128)", 0.4, 0.3, 128}, -0.2f, 1290, 1000, 290, DType::kF16},
    {{"flexprefill(0.9,0.1,1024)", 0.9, 0.1, 1024}, 0.25f, 700, 650, 50},
    {{"flexprefill(0.31,1,1)", 0.31, 1, 1}, 2.0f, 900, 128, 772},
    {{"flexprefill(0.6,0.1,1)", 0.6, 0.1, 1}, 0.25f, 60, 59, 1},
};

TEST_CASE("flexprefill: the blocks of the definition at every number of ranks, ties included") {
  Rng rng(2502);
  ThreadPool pool(2);
  int query_aware = 0, heads = 0;
  for (const Question& of : kQuestions) {
    for (const Rows rows : {Rows::kNormal, Rows::kTied, Rows::kTiedBlocks}) {
      const Tensor q = Make(rng, of.dtype, rows, of.q_begin, of.q_tokens, kHeads);
      const Tensor k = Make(rng, of.dtype, rows, 0, of.kv_tokens, kKvHeads);
      const auto pattern = Pattern::Parse(of.word.text, kKvHeads);
      INFO(pattern.status());
      REQUIRE(pattern.ok());
      const CallList expected =
          test::ReferenceFlexPrefillList(of.word, q, of.q_begin, k, of.scale, &query_aware);
      heads += kHeads;
      for (const int world : {1, 2, 3, 4, 7}) {
        for (const Cut& cut : kCuts) {
          CAPTURE(of.word.text, of.scale, world, static_cast<int>(cut.placement),
                  static_cast<int>(rows));
          const auto lists = SelectLocally(*pattern, {}, LayoutOf(cut, world, of.kv_tokens), q,
                                           of.q_begin, k, &pool, of.scale);
          INFO(lists.status());
          REQUIRE(lists.ok());
          REQUIRE(lists->at(0).name == of.word.text);
          const KeyListData& made = lists->at(0).list->data();
          REQUIRE(made.q_begin == expected.data->q_begin);
          REQUIRE(made.block_tokens == 128);
          REQUIRE(made.begin == expected.data->begin);
          REQUIRE(made.keys == expected.data->keys);
        }
      }
    }
  }
  CHECK(query_aware > heads / 5);
  CHECK(heads - query_aware > heads / 5);
}

TEST_CASE("flexprefill: a prompt cut at its blocks sees in its last chunk what the whole one may") {
  // All of the weight is seen, so that both see all.
  Rng rng(2503);
  const Tensor k = test::MaybeTied(rng, DType::kF32, false, 600, kKvHeads, kDim);
  const Tensor q = test::MaybeTied(rng, DType::kF32, false, 600, kHeads, kDim);
  const auto pattern = Pattern::Parse("flexprefill(1)", kKvHeads);
  REQUIRE(pattern.ok());
  REQUIRE(pattern->selectors()[0]->name() == "flexprefill(1,0.1,1024)");
  for (const int64_t first : {0, 384}) {
    const auto lists = SelectLocally(*pattern, {}, LayoutOf(kCuts[0], 2, 600),
                                     q.view().Tokens(first, 600 - first), first, k, nullptr);
    REQUIRE(lists.ok());
    const auto bound = pattern->Bind(*lists, kHeads);
    REQUIRE(bound.ok());
    for (int64_t row = first; row < 600; row += 37) {
      CAPTURE(first, row);
      for (const int64_t key : {int64_t{0}, row / 2, row}) {
        REQUIRE(bound->Member(1).Allows(1, row, key));
      }
      REQUIRE(!bound->Member(1).Allows(1, row, row + 1));
    }
  }
}

TEST_CASE("flexprefill: refusals name what is wrong") {
  CHECK(test::IsRefused("flexprefill()", kKvHeads, "gamma"));
  CHECK(test::IsRefused("flexprefill(1.5)", kKvHeads, "a number above 0 and at most 1 for gamma"));
  CHECK(test::IsRefused("flexprefill(0.9,tau=0)", kKvHeads, "at most 1 for tau"));
  CHECK(test::IsRefused("flexprefill(0.9,min=0)", kKvHeads, "a number from 1 to"));
  CHECK(test::IsRefused("flexprefill(0.9,min=1000000000)", kKvHeads, "list_keys_max"));
  Rng rng(1);
  Tensor q = test::MaybeTied(rng, DType::kF32, false, 200, kHeads, kDim);
  Tensor k = test::MaybeTied(rng, DType::kF32, false, 400, kKvHeads, kDim);
  const auto pattern = Pattern::Parse("flexprefill(0.9,1)", kKvHeads);
  REQUIRE(pattern.ok());
  const auto refused = [&](int64_t q_begin, absl::string_view why) {
    const auto lists =
        SelectLocally(*pattern, {}, LayoutOf(kCuts[0], 1, 400), q, q_begin, k, nullptr);
    INFO(lists.status());
    CHECK(absl::IsInvalidArgument(lists.status()));
    CHECK(absl::StrContains(lists.status().message(), why));
  };
  refused(201, "expected positions below kv_len, 400");
  // A query that is none of the last ones.
  k.f32()[0] = 1e36f;
  for (int64_t i = 0; i < 200 * kHeads; ++i) q.f32()[i * kDim] = i < 40 * kHeads ? 1e36f : 0;
  refused(200, "the mean of the queries at 200 to 255, head 0 scores a block beyond what f32");
  q.f32()[199 * kHeads * kDim] = 1e36f;
  refused(200, "score that is not finite");
  // More than a list has room for, before anybody is asked; and more than a pass may bring.
  const ColumnSelector& word = *pattern->selectors()[0]->by_column();
  CHECK(word.CheckCall({0, 1000000}, 8).ok());
  CHECK(absl::StrContains(word.CheckCall({0, 2000000}, 8).message(),
                          "expected at most list_keys_max, 33554432: ask for fewer at once"));
  ContextSpec spec;
  spec.heads = 64;
  spec.kv_heads = 8;
  spec.head_dim = 512;
  constexpr int64_t kMany = int64_t{1} << 23;
  const ColumnPass pass(spec,
                        Layout::Tokens(1, 64, 8, {PartitionKind::kBlockCyclic, 1}, BlocksOf(kMany)),
                        {kMany - 128, kMany}, kMany);
  REQUIRE(pass.Check().ok());
  CHECK(absl::StrContains(pass.CheckWeights(ColumnTrip::kSpans).message(), "select_bytes_max"));
}

}  // namespace
}  // namespace annulus
