// minference(v,s): at every number of ranks, placement and cut the keys of the definition in
// float64, ties included.
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "attention/pattern.h"
#include "base/rng.h"
#include "runtime/engine/select_local.h"
#include "sharding/layout.h"
#include "tests/attention/reference_minference.h"
#include "tests/catch.h"
#include "tests/engine/selection_inputs.h"

namespace annulus {
namespace {

using test::Cut, test::kCuts, test::LayoutOf;

constexpr int kHeads = 4, kKvHeads = 2, kDim = 16;

struct Question {
  int64_t v, s;
  int64_t kv_tokens, q_begin, q_tokens;
  DType dtype = DType::kF32;
};

TEST_CASE("minference: the keys of the definition at every number of ranks, ties included") {
  Rng rng(2405);
  ThreadPool pool(2);
  for (const Question& of : {Question{40, 110, 500, 400, 100},
                             {30, 50, 330, 200, 130, DType::kBF16},
                             {1, 1, 300, 299, 1},
                             {60, 130, 250, 0, 250, DType::kF16},
                             {999, 120, 200, 130, 70}}) {
    for (const bool ties : {false, true}) {
      const Tensor q = test::MaybeTied(rng, of.dtype, ties, of.q_tokens, kHeads, kDim);
      const Tensor k = test::MaybeTied(rng, of.dtype, ties, of.kv_tokens, kKvHeads, kDim);
      const std::string word = absl::StrCat("minference(", of.v, ",", of.s, ")");
      const auto pattern = Pattern::Parse(word, kKvHeads);
      REQUIRE(pattern.ok());
      const float scale = 0.5f;
      std::shared_ptr<const KeyList> first;
      for (const int world : {1, 2, 3, 4, 7}) {
        for (const Cut& cut : kCuts) {
          CAPTURE(word, world, static_cast<int>(cut.placement), ties);
          const auto lists = SelectLocally(*pattern, {}, LayoutOf(cut, world, of.kv_tokens), q,
                                           of.q_begin, k, &pool, scale);
          INFO(lists.status());
          REQUIRE(lists.ok());
          REQUIRE(lists->at(0).name == word);
          if (first == nullptr) first = lists->at(0).list;
          REQUIRE(lists->at(0).list->data().begin == first->data().begin);
          REQUIRE(lists->at(0).list->data().keys == first->data().keys);
        }
      }
      const auto bound = pattern->Bind(std::vector<NamedList>{{word, first}}, kHeads);
      REQUIRE(bound.ok());
      const CallList expected =
          test::ReferenceMInferenceList(of.v, of.s, q, of.q_begin, k, of.kv_tokens, scale);
      const auto reference = KeyList::Make(expected.data);
      REQUIRE(reference.ok());
      for (int head = 0; head < kHeads; ++head) {
        for (int64_t row = of.q_begin; row < of.q_begin + of.q_tokens; ++row) {
          std::vector<int32_t> seen;
          for (int64_t key = 0; key < of.kv_tokens; ++key) {
            if (bound->Member(head % 2).Allows(head / 2, row, key)) {
              seen.push_back(static_cast<int32_t>(key));
            }
          }
          const auto keys = (*reference)->Keys(head, row - of.q_begin);
          CAPTURE(word, ties, head, row);
          REQUIRE(seen == std::vector<int32_t>(keys.begin(), keys.end()));
        }
      }
    }
  }
}

TEST_CASE("minference: refusals name what is wrong") {
  CHECK(test::IsRefused("minference(5)", kKvHeads, "s"));
  CHECK(test::IsRefused("minference(0,5)", kKvHeads, "expected a number from 1 to"));
  CHECK(test::IsRefused("minference(5,1000000000)", kKvHeads, "list_keys_max"));
  Rng rng(1);
  const Tensor q = test::MaybeTied(rng, DType::kF32, false, 20, kHeads, kDim);
  Tensor k = test::MaybeTied(rng, DType::kF32, false, 100, kKvHeads, kDim);
  const auto pattern = Pattern::Parse("minference(30,50)", kKvHeads);
  REQUIRE(pattern.ok());
  const auto beyond = SelectLocally(*pattern, {}, LayoutOf(kCuts[0], 1, 100), q, 90, k, nullptr);
  CHECK(absl::IsInvalidArgument(beyond.status()));
  CHECK(absl::StrContains(beyond.status().message(), "expected positions below kv_len, 100"));
  k.f32()[0] = 1e38f;
  const auto large =
      SelectLocally(*pattern, {}, LayoutOf(kCuts[0], 1, 100), q, 80, k, nullptr, 100.0f);
  CHECK(absl::IsInvalidArgument(large.status()));
  CHECK(absl::StrContains(large.status().message(), "score that is not finite"));
}

}  // namespace
}  // namespace annulus
