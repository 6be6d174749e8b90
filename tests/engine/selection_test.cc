// Keys chosen by data: every number of ranks, placement and cut gives the keys of the definition in
// float64, ties included, and the attention over them.
#include <atomic>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "attention/reference/reference.h"
#include "base/rng.h"
#include "runtime/engine/local_ranks.h"
#include "runtime/engine/select_local.h"
#include "runtime/engine/selection.h"
#include "sharding/planner.h"
#include "tests/attention/reference_lists.h"
#include "tests/catch.h"
#include "tests/engine/selection_inputs.h"

namespace annulus {
namespace {

using test::Cut, test::kCuts, test::LayoutOf;

constexpr int kHeads = 4, kKvHeads = 2, kDim = 16;

struct Question {
  std::string word;
  int64_t kv_tokens = 0;
  int64_t q_begin = 0;
  int64_t q_tokens = 0;
  DType dtype = DType::kF32;
  bool ties = false;
};

Tensor Filled(Rng& rng, const Question& question, int64_t tokens, int heads) {
  return test::MaybeTied(rng, question.dtype, question.ties, tokens, heads, kDim);
}

Pattern Parsed(const std::string& text) {
  auto pattern = Pattern::Parse(text, kKvHeads);
  INFO(pattern.status());
  REQUIRE(pattern.ok());
  return *std::move(pattern);
}

TEST_CASE("selections are those of the definition at every number of ranks, ties included") {
  Rng rng(2211);
  ThreadPool pool(2);
  for (const Question& asked :
       std::vector<Question>{{"moba(64,3)", 1000, 900, 100},
                             {"moba(128,4)", 1500, 1500 - 1, 1},
                             {"moba(128,4)", 1500, 1300, 200, DType::kBF16},
                             {"moba(192,2)", 1500, 1300, 40, DType::kF16, true},
                             {"moba(16,9)", 700, 600, 100, DType::kF32, true},
                             {"moba(64,1)", 500, 450, 50},
                             {"quest(64)", 900, 899, 1},
                             {"quest(100,16)", 900, 600, 70, DType::kBF16},
                             {"quest(128,1)", 300, 290, 10},
                             {"quest(512,128)", 1400, 1399, 1, DType::kF32, true},
                             {"quest(256,64)", 1400, 1390, 10, DType::kBF16, true},
                             {"quest(64,16)", 400, 1000, 3},
                             {"quest(4096)", 400, 0, 400},
                             {"nsa(3)", 1000, 900, 100},
                             {"nsa(2,128)", 1500, 1500 - 1, 1},
                             {"nsa(4,16)", 640, 600, 40, DType::kBF16},
                             {"nsa(3,192)", 1500, 1300, 40, DType::kF16, true},
                             {"nsa(1)", 400, 1000, 3},
                             {"nsa(16)", 700, 0, 700},
                             {"xattention(0.9)", 1500, 1280, 220},
                             {"xattention(0.5,8)", 1500, 1210, 250, DType::kBF16},
                             {"xattention(0.75,16,64)", 700, 0, 700, DType::kF16},
                             {"xattention(1,64,192)", 1300, 1111, 64},
                             {"xattention(0.3,4,32)", 517, 500, 30},
                             {"biformer(64)", 1024, 0, 300},
                             {"biformer(16,4)", 784, 760, 24, DType::kBF16},
                             {"biformer(128,3)", 1536, 1000, 90},
                             {"biformer(1,9)", 50, 0, 50},
                             {"biformer(4,200)", 196, 10, 30}}) {
    for (const bool ties : {asked.ties, true}) {
      Question question = asked;
      question.ties = ties;
      const Tensor q = Filled(rng, question, question.q_tokens, kHeads);
      const Tensor k = Filled(rng, question, question.kv_tokens, kKvHeads);
      const Pattern pattern = Parsed(question.word);
      REQUIRE(pattern.selectors().size() == 1);
      std::shared_ptr<const KeyList> first;
      for (const int world : {1, 2, 3, 4, 7}) {
        for (const Cut& cut : kCuts) {
          CAPTURE(question.word, world, static_cast<int>(cut.placement), ties);
          const auto lists = SelectLocally(pattern, {}, LayoutOf(cut, world, question.kv_tokens), q,
                                           question.q_begin, k, &pool);
          INFO(lists.status());
          REQUIRE(lists.ok());
          const KeyList& list = *lists->at(0).list;
          const std::string& list_name = pattern.selectors()[0]->name();
          REQUIRE(lists->at(0).name == list_name);
          if (first == nullptr) {
            first = lists->at(0).list;
            const CallList expected =
                test::ReferenceList(list_name, q, question.q_begin, k, question.kv_tokens);
            REQUIRE(list.data().heads == expected.data->heads);
            REQUIRE(list.data().rows == expected.data->rows);
            REQUIRE(list.data().block_tokens == expected.data->block_tokens);
            REQUIRE(list.data().q_begin == expected.data->q_begin);
            REQUIRE(list.data().begin == expected.data->begin);
            REQUIRE(list.data().keys == expected.data->keys);
          }
          REQUIRE(list.data().begin == first->data().begin);
          REQUIRE(list.data().keys == first->data().keys);
        }
      }
    }
  }
}

TEST_CASE("words that weigh scores take the call's scale, as if queries were so much larger") {
  Rng rng(2213);
  ThreadPool pool(1);
  for (const Question& question :
       {Question{"nsa(3)", 1000, 700, 100}, {"xattention(0.7,16,64)", 700, 0, 700}}) {
    CAPTURE(question.word);
    const Tensor q = Filled(rng, question, question.q_tokens, kHeads);
    const Tensor k = Filled(rng, question, question.kv_tokens, kKvHeads);
    Tensor larger = Filled(rng, question, question.q_tokens, kHeads);
    for (int64_t i = 0; i < q.view().size(); ++i) larger.f32()[i] = 4 * q.f32()[i];
    const Pattern pattern = Parsed(question.word);
    const auto keys = [&](const Tensor& asks, float scale) {
      const auto lists = SelectLocally(pattern, {}, LayoutOf(kCuts[0], 2, question.kv_tokens), asks,
                                       question.q_begin, k, &pool, scale);
      REQUIRE(lists.ok());
      return lists->at(0).list->data().keys;
    };
    const float usual = 1 / std::sqrt(float{kDim});
    CHECK(keys(q, 4 * usual) == keys(larger, 0));
    CHECK(keys(q, 4 * usual) != keys(q, usual));
    // Scores of the other sign.
    Tensor turned = Filled(rng, question, question.q_tokens, kHeads);
    for (int64_t i = 0; i < q.view().size(); ++i) turned.f32()[i] = -q.f32()[i];
    CHECK(keys(q, -usual) == keys(turned, usual));
  }
}

TEST_CASE(
    "attention over chosen keys is the oracle's over the same keys, at every number of ranks") {
  Rng rng(2212);
  ThreadPool pool(1);
  const auto backend = MakeBackend("cpu", 1);
  REQUIRE(backend.ok());
  const Question question{"", 700, 640, 60};
  const Tensor q = Filled(rng, question, question.q_tokens, kHeads);
  const Tensor k = Filled(rng, question, question.kv_tokens, kKvHeads);
  const Tensor v = Filled(rng, question, question.kv_tokens, kKvHeads);
  for (const char* text : {"causal & (sink(4) | window(20) | quest(128,16))",
                           "heads(0: causal; 1: moba(64,3))", "moba(128,2) | quest(48)"}) {
    const Pattern pattern = Parsed(text);
    std::optional<Partial> first;
    for (const int world : {1, 2, 3, 4, 7}) {
      CAPTURE(text, world);
      const Layout layout = LayoutOf(kCuts[world % 6], world, question.kv_tokens);
      const auto lists = SelectLocally(pattern, {}, layout, q, question.q_begin, k, &pool);
      REQUIRE(lists.ok());
      const auto bound = pattern.Bind(*lists, kHeads);
      REQUIRE(bound.ok());
      REQUIRE(bound->CheckLists({question.q_begin, question.kv_tokens}, question.kv_tokens).ok());
      const annulus::Problem problem{.q_tokens = question.q_tokens,
                                     .kv_tokens = question.kv_tokens,
                                     .heads = kHeads,
                                     .kv_heads = kKvHeads,
                                     .head_dim = kDim,
                                     .v_head_dim = kDim,
                                     .dtype = DType::kF32,
                                     .pattern = *bound,
                                     .home = Home::kOwners,
                                     .home_partition = kCuts[world % 6].partition,
                                     .kv = layout};
      const auto decision = Choose(problem, ClusterModel{}, {});
      REQUIRE(decision.ok());
      const auto ranks = LocalRanks::Create(decision->plan, q, k, v, **backend);
      REQUIRE(ranks.ok());
      auto run = ranks->Run(0.25f);
      REQUIRE(run.ok());
      const KvTable table = KvTable::FromTensors(k, v);
      for (int64_t row = 0; row < question.q_tokens; ++row) {
        for (int head = 0; head < kHeads; ++head) {
          const auto oracle =
              ReferenceRow(q.view().Row(row, head), DType::kF32, table, question.kv_tokens,
                           bound->Member(head % 2), head / 2, question.q_begin + row, 0.25f);
          REQUIRE(oracle.ok());
          const int64_t at = row * kHeads + head;
          const PartialView view = run->result.view();
          const RowError error = ErrorOf(view.out + at * kDim, view.lse[at], *oracle);
          REQUIRE(error.out < 1e-5);
          REQUIRE(error.lse < 1e-5);
          if (!first.has_value()) continue;
          for (int c = 0; c < kDim; ++c) {
            REQUIRE(std::abs(view.out[at * kDim + c] - first->view().out[at * kDim + c]) < 1e-6);
          }
        }
      }
      if (!first.has_value()) first = std::move(run->result);
    }
  }
}

TEST_CASE("words choose for each token of a prefill what they choose in decode") {
  Rng rng(2213);
  ThreadPool pool(1);
  const Question question{GENERATE("moba(64,3)", "nsa(3)"), 520, 0, 520};
  const Tensor q = Filled(rng, question, question.q_tokens, kHeads);
  const Tensor k = Filled(rng, question, question.kv_tokens, kKvHeads);
  const Pattern pattern = Parsed(question.word);
  const auto all = SelectLocally(pattern, {}, LayoutOf(kCuts[0], 3, 520), q, 0, k, &pool);
  REQUIRE(all.ok());
  for (int64_t t = 0; t < 520; t += 13) {
    const auto one = SelectLocally(pattern, {}, LayoutOf(kCuts[1], 2, t + 1), q.view().Tokens(t, 1),
                                   t, k.view().Tokens(0, t + 1), &pool);
    REQUIRE(one.ok());
    for (int head = 0; head < all->at(0).list->heads(); ++head) {
      REQUIRE(all->at(0).list->Keys(head, t) == one->at(0).list->Keys(head, 0));
    }
  }
}

TEST_CASE("a choice ends soon once its caller has cancelled it, whatever the word") {
  Rng rng(2214);
  const Question question{
      GENERATE("quest(128)", "moba(64,3)", "nsa(3)", "minference(30,50)", "flexprefill(0.9)"), 520,
      0, 520};
  CAPTURE(question.word);
  const Tensor q = Filled(rng, question, question.q_tokens, kHeads);
  const Tensor k = Filled(rng, question, question.kv_tokens, kKvHeads);
  for (const bool cancelled : {false, true}) {
    const std::atomic<bool> cancel = cancelled;
    const auto lists = SelectLocally(Parsed(question.word), {}, LayoutOf(kCuts[0], 2, 520), q, 0, k,
                                     /*pool=*/nullptr, /*scale=*/0, &cancel);
    INFO(lists.status());
    CHECK(absl::IsCancelled(lists.status()) == cancelled);
    CHECK(lists.ok() != cancelled);
  }
}

TEST_CASE("words that choose keys refuse by position what they cannot be, and run without data") {
  const auto refused = [](const std::string& text, const std::string& what) {
    return test::IsRefused(text, kKvHeads, what);
  };
  CHECK(refused("moba(100,3)", "at 6: 100; expected a divisor of 64 or a multiple of it"));
  CHECK(refused("moba(2097152,3)", "at 6: 2097152; expected"));
  CHECK(refused("causal & moba(64)", "expected"));
  CHECK(refused("moba(64,0)", "at 9: \"0\"; expected a number from 1"));
  CHECK(refused("moba(64,536870912)", "at 9: 536870912; expected at most list_keys_max"));
  CHECK(refused("quest()", "expected"));
  CHECK(refused("xattention(0)",
                "at 12: \"0\"; expected a number above 0 and at most 1 for threshold"));
  CHECK(refused("xattention(1.5)", "at 12: \"1\"; expected a number above 0"));
  CHECK(refused("xattention(0.)", "at 12: \"0\"; expected a number above 0"));
  CHECK(refused("xattention(.5)", "expected"));
  CHECK(refused("xattention(0.1234567891)", "9 decimals at most"));
  CHECK(refused("xattention(0.9,48)", "at 16: 48; expected a divisor of 64"));
  CHECK(refused("xattention(0.9,16,8)", "at 19: 8; expected a multiple of stride, 16"));
  CHECK(refused("biformer(49)", "at 10: 49; expected a divisor of 64"));
  CHECK(Parsed("xattention(threshold=0.900)").list_names()[0] == "xattention(0.9,16,128)");
  CHECK(Parsed("xattention(1.0,block=64)").list_names()[0] == "xattention(1,16,64)");
  CHECK(refused("nsa(0)", "at 5: \"0\"; expected a number from 1"));
  CHECK(refused("nsa(16,block=96)", "at 14: 96; expected a divisor of 64"));
  CHECK(refused("quest(64,page=24)", "at 15: 24; expected a divisor of 64"));
  CHECK(refused("quest(budget=0)", "from 1"));
  CHECK(refused("causal & permute(1,64,quest(64))", "no word that chooses keys by data within"));
  const Pattern pattern = Parsed("quest(64) | quest(budget=64,page=16) | moba(64,2)");
  CHECK(pattern.list_names() == std::vector<std::string>{"moba(64,2)", "quest(64,16)"});
  CHECK(pattern.selectors().size() == 2);
  CHECK(pattern.CheckLists({0, 1}, 1).message() ==
        "pattern: moba(64,2) chooses keys by data; expected a call that has them, or its list");
}

TEST_CASE("scores that f32 does not hold are refused where a query would see their unit") {
  constexpr int64_t kTokens = 640;
  Rng rng(2213);
  for (const char* word :
       {"moba(64,3)", "quest(48,16)", "nsa(3)", "xattention(0.5,1)", "biformer(64,2)"}) {
    const bool by_row = Parsed(word).selectors()[0]->by_row() != nullptr;
    for (const float large : {1e38f, -1e38f}) {
      for (const bool only_largest : {true, false}) {
        const Question question{"", kTokens, kTokens - 3, 3};
        Tensor q = Filled(rng, question, 3, kHeads), k = Filled(rng, question, kTokens, kKvHeads);
        // One block of keys, or all of them.
        const int64_t row = kKvHeads * kDim;
        for (int64_t t = only_largest ? 128 : 0; t < (only_largest ? 192 : kTokens); ++t) {
          std::fill_n(k.f32() + t * row, row, large);
        }
        std::fill_n(q.f32(), q.view().size(), 2.0f);
        for (const int world : {1, 3}) {
          CAPTURE(word, large, only_largest, world);
          const auto lists = SelectLocally(Parsed(word), {}, LayoutOf(kCuts[0], world, kTokens), q,
                                           kTokens - 3, k, nullptr);
          // What scores least of all is not seen, so that it does not matter by how much; unless
          // all scores count.
          CHECK(lists.ok() == (only_largest && large < 0 && !by_row));
          if (lists.ok()) continue;
          CHECK(absl::IsInvalidArgument(lists.status()));
          CHECK(absl::StrContains(lists.status().message(),
                                  ": row 0, head 0 scores a unit beyond what f32 holds; expected"));
        }
      }
    }
  }
}

TEST_CASE("a selection refuses more than its bounds by name, and an answer that is none") {
  const Pattern pattern = Parsed("quest(1048576,1)");
  SelectRows rows{.selector = pattern.selectors()[0].get(),
                  .q = TensorView::Contiguous(nullptr, DType::kF32, 4096, kHeads, kDim),
                  .q_begin = 1 << 20,
                  .heads = {0, kHeads},
                  .group = 2,
                  .kv_tokens = 1 << 21};
  const absl::Status many = Selection(rows, LayoutOf(kCuts[0], 2, rows.kv_tokens)).Check();
  CHECK(absl::StrContains(many.message(), "list_keys_max"));
  rows.q.tokens = 1;
  const Selection one(rows, LayoutOf(kCuts[0], 2, rows.kv_tokens));
  CHECK(one.Check().ok());
  const Tensor q(DType::kF32, 1, kHeads, kDim);
  Selection::Merge merge(one, q, DType::kF32);
  CHECK(absl::IsDataLoss(merge.Add(1, std::vector<std::byte>(8))));
  const auto refusal = [&](const char* word, int64_t q_tokens, int64_t kv_tokens) {
    const Pattern of = Parsed(word);
    const SelectRows asked{
        .selector = of.selectors()[0].get(),
        .q = TensorView::Contiguous(nullptr, DType::kF32, q_tokens, kHeads, kDim),
        .heads = {0, kHeads},
        .group = 2,
        .kv_tokens = kv_tokens};
    return Selection(asked, LayoutOf(kCuts[0], 2, kv_tokens)).Check();
  };
  CHECK(
      refusal("xattention(0.9,8)", 7, 512).message() ==
      "pattern: xattention(0.9,8,128) is for prefill: 7 queries; expected at least 8, its stride");
  CHECK(refusal("xattention(0.9,8)", 8, 512).ok());
  CHECK(refusal("biformer(64)", 64, 500).message() ==
        "pattern: biformer(64,4): 500 keys; expected whole regions, a multiple of 64");
  // All scores of 8,192 queries, 4 heads and 32,768 units are 4 GiB.
  const Pattern by_row = Parsed("nsa(16)");
  rows.selector = by_row.selectors()[0].get();
  rows.q.tokens = 8192;
  rows.q_begin = (1 << 21) - 8192;
  const absl::Status scores = Selection(rows, LayoutOf(kCuts[0], 2, rows.kv_tokens)).Check();
  CHECK(absl::StrContains(scores.message(), "bytes of scores"));
  CHECK(absl::StrContains(scores.message(), "expected at most select_bytes_max"));
}

}  // namespace
}  // namespace annulus
