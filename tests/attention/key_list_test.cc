// Lists: what is refused and in which words; what heads and rows mean; and that backends compute
// over lists what they compute over the rule that says the same.
#include <cstring>
#include <functional>

#include "absl/strings/match.h"
#include "attention/attend_args.h"
#include "attention/key_list.h"
#include "tests/attention/contenders.h"
#include "tests/attention/pattern_random.h"
#include "tests/attention/problem.h"
#include "tests/catch.h"

namespace annulus {
namespace {

KeyListData Good() {
  KeyListData data;
  data.rows = KeyListData::Rows::kBlock;
  data.heads = 2;
  data.begin = {0, 1, 3, 3, 6};
  data.keys = {0, 0, 1, 0, 2, 5};
  return data;
}

std::shared_ptr<const KeyList> Made(KeyListData data) {
  auto list = KeyList::Make(std::move(data));
  INFO(list.status());
  REQUIRE(list.ok());
  return *std::move(list);
}

template <typename Change>
void CheckRefused(Change change, absl::string_view message) {
  KeyListData data = Good();
  change(data);
  const auto list = KeyList::Make(std::move(data));
  REQUIRE(absl::IsInvalidArgument(list.status()));
  INFO(list.status());
  REQUIRE(list.status().message() == message);
}

TEST_CASE("key list: hostile lists are refused by field, value and expectation") {
  REQUIRE(KeyList::Make(Good()).ok());
  CheckRefused(
      [](KeyListData& d) {
        d.begin = {0, 2, 1, 3, 6};
      },
      "begin[2]: 1; expected at least begin[1], 2");
  CheckRefused([](KeyListData& d) { d.begin = {1, 1, 3, 3, 6}; }, "begin[0]: 1; expected 0");
  CheckRefused([](KeyListData& d) { d.unit = static_cast<KeyListData::Unit>(5); },
               "unit: 5; expected blocks or tokens");
  CheckRefused([](KeyListData& d) { d.rows = static_cast<KeyListData::Rows>(9); },
               "rows: 9; expected token, block, all or vertical-slash");
  CheckRefused(
      [](KeyListData& d) {
        d.begin = {0, 1, 7, 7, 7};
      },
      "begin[2]: 7; expected at most the number of keys, 6");
  CheckRefused([](KeyListData& d) { d.begin.back() = 5; },
               "begin[4]: 5; expected the number of keys, 6");
  CheckRefused(
      [](KeyListData& d) {
        d.begin = {0, 1, 3, 6};
      },
      "begin: 4; expected one entry for each row of each of 2 heads and one more");
  CheckRefused([](KeyListData& d) { d.begin = {}; },
               "begin: 0; expected one entry for each row of each of 2 heads and one more");
  CheckRefused(
      [](KeyListData& d) { d.keys[4] = 0; },
      "keys[4]: 0; expected more than keys[3], 0: keys of a row ascend and are there once");
  CheckRefused(
      [](KeyListData& d) { std::swap(d.keys[1], d.keys[2]); },
      "keys[2]: 0; expected more than keys[1], 1: keys of a row ascend and are there once");
  CheckRefused([](KeyListData& d) { d.keys[3] = -1; }, "keys[3]: -1; expected 0 or more");
  CheckRefused([](KeyListData& d) { d.block_tokens = 0; },
               "block_tokens: 0; expected 1 to 1048576");
  CheckRefused([](KeyListData& d) { d.heads = 0; }, "heads: 0; expected 1 to 65536");
  CheckRefused([](KeyListData& d) { d.rows = KeyListData::Rows::kAll; },
               "begin: 5; expected 3 entries: one row for all queries of a head");
  CheckRefused([](KeyListData& d) { d.q_begin = 32; },
               "q_begin: 32; expected a position, of a block's begin where rows are blocks");
}

TEST_CASE("key list: binding and calls are checked by name") {
  const Pattern pattern = *Pattern::Parse("causal & (list(x) | list(y_2))", 2);
  REQUIRE(pattern.list_names() == std::vector<std::string>{"x", "y_2"});
  const auto list = Made(Good());
  const auto refused = [&](std::vector<NamedList> lists, absl::string_view message) {
    const absl::Status status = pattern.Bind(lists, 6).status();
    REQUIRE(status.message() == message);
  };
  refused({{"z", list}}, "lists: z; expected a name in a list(name) of the pattern: x, y_2");
  refused({{"x", list}, {"x", list}}, "lists: x again; expected each list once");
  KeyListData three = Good();
  three.heads = 4;
  refused({{"x", Made(three)}}, "list x: heads: 4; expected 1, 2 (KV heads) or 6 (query heads)");
  REQUIRE(absl::StrContains(
      Pattern::Parse("full", 1)->Bind({{NamedList{"x", list}}}, 1).status().message(),
      "which has none"));
  const Pattern half = *pattern.Bind({{NamedList{"x", list}}}, 6);
  REQUIRE(half.id() != pattern.id());
  REQUIRE(half.CheckLists({0, 1}, 999).message() ==
          "lists: no list y_2; expected one: the pattern has list(y_2)");
  const Pattern bound = *pattern.Bind({{NamedList{"x", list}, NamedList{"y_2", list}}}, 6);
  REQUIRE(bound.CheckLists({0, 128}, 321).ok());
  REQUIRE(bound.CheckLists({0, 128}, 320).message() ==
          "list x: keys[5]: 5; expected less than 5, the blocks of the context");
  REQUIRE(bound.CheckLists({0, 129}, 999).message() ==
          "list x: rows of the queries [0, 128); expected rows of all queries of the call, "
          "[0, 129)");
}

TEST_CASE("key list: heads that see the same are one class, and later rows may forget or not") {
  KeyListData data = Good();
  data.heads = 3;
  data.begin = {0, 1, 3, 4, 6, 8, 9};
  data.keys = {0, 0, 1, 0, 0, 1, 0, 1, 1};
  const auto list = Made(data);
  REQUIRE(list->HeadClass(0) == 0);
  REQUIRE(list->HeadClass(1) == 0);
  REQUIRE(list->HeadClass(2) == 2);
  REQUIRE(list->kv_efficient(0));
  data.keys = {0, 0, 0, 1, 0, 1, 1};
  data.begin = {0, 0, 1, 2, 4, 6, 7};  // the second row of head 0 sees what its first did not
  REQUIRE_FALSE(Made(data)->kv_efficient(0));
  const Pattern bound = *Pattern::Parse("list(x)", 3)->Bind({{NamedList{"x", list}}}, 3);
  REQUIRE(bound.HeadClass(1) == 0);
  REQUIRE(bound.HeadClass(2) == 2);
}

// A random list of `heads` heads, over queries and KV of `shape`.
NamedList RandomNamed(Rng& rng, int heads, const ProblemShape& shape) {
  return {"x", Made(MakeRandomList(rng, heads, shape.kv_tokens, shape.kv_tokens).data)};
}

// The CPU's and those of the GPU, if there is one.
void ForEachKind(const std::function<void(Backend*)>& test) {
  for (const char* name : {"cpu", "cuda", "cuda:sm_80"}) {
    const auto backend = MakeBackend(name, name[1] == 'p' ? 2 : 0);
    INFO("backend " << name);
    if (backend.ok()) test(backend->get());
  }
}

void CheckBackends(const Problem& problem, double lse_tolerance = 1e-5) {
  const std::vector<ReferenceAnswer> oracle = problem.Oracle();
  ForEachKind([&](Backend* backend) {
    Partial partial = problem.Identity();
    const absl::Status status = backend->Attend(problem.Args(&problem.all(), &partial));
    INFO(status);
    REQUIRE(status.ok());
    CheckAgainst(oracle, OutTolerance(*backend, problem.shape()), &partial, lse_tolerance);
  });
}

TEST_CASE("key list: backends compute what float64 says, for heads of every kind") {
  constexpr int kDims[] = {16, 64, 128};
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    Rng rng(seed);
    ProblemShape shape;
    shape.kv_heads = static_cast<int>(rng.Between(1, 3));
    shape.group = static_cast<int>(rng.Between(1, 3));
    shape.kv_tokens = rng.Between(1, 500);
    if (rng.Below(3) == 0) {
      shape.dtype = DType::kBF16;
    } else if (rng.Below(2) == 0) {
      shape.dtype = shape.q_dtype = DType::kBF16;
      shape.head_dim = shape.v_head_dim = kDims[rng.Below(3)];
    }
    const char* patterns[] = {"list(x)", "list(x) & causal", "list(x) | window(20)",
                              "heads(0: list(x) & window(90,90))"};
    shape.pattern = patterns[rng.Below(shape.kv_heads == 1 ? 4 : 3)];
    const int heads[] = {1, shape.kv_heads, shape.kv_heads * shape.group};
    Problem problem(shape, seed);
    problem.Bind(RandomNamed(rng, heads[rng.Below(3)], shape));
    CAPTURE(seed, shape.ToString(), problem.pattern().by_query_head());
    CheckBackends(problem, shape.q_dtype == DType::kBF16 ? 4e-5 : 1e-5);
  }
}

// Blocks of 64, each with the same chance, by block of queries.
NamedList SomeBlocks(Rng& rng, int heads, int64_t blocks, uint64_t one_of) {
  KeyListData data;
  data.rows = KeyListData::Rows::kBlock;
  data.heads = heads;
  data.begin = {0};
  for (int64_t row = 0; row < heads * blocks; ++row) {
    for (int64_t k = 0; k < blocks; ++k) {
      if (rng.Below(one_of) == 0) data.keys.push_back(static_cast<int32_t>(k));
    }
    data.begin.push_back(static_cast<int64_t>(data.keys.size()));
  }
  return {"x", Made(std::move(data))};
}

TEST_CASE("key list: rows of many scattered blocks, alike or not, for heads of every kind") {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    Rng rng(seed + 1);
    ProblemShape shape;
    shape.dtype = shape.q_dtype = DType::kBF16;
    shape.head_dim = shape.v_head_dim = seed % 4 == 3 ? 64 : 128;
    shape.group = static_cast<int>(rng.Between(1, 4));
    shape.kv_tokens = 64 * 80 + (seed % 2 == 0 ? 0 : rng.Between(1, 63));
    shape.q_ranges = {{64 * 50 + rng.Between(0, 63), 64 * 54}, {64 * 60, 64 * 61}};
    shape.pattern = seed % 3 == 0 ? "list(x)" : "causal & list(x)";
    const int heads[] = {1, shape.kv_heads, shape.kv_heads * shape.group};
    Problem problem(shape, seed);
    problem.Bind(
        SomeBlocks(rng, heads[seed % 3], BlocksOf(shape.kv_tokens), seed % 5 == 0 ? 8 : 2));
    CAPTURE(seed, shape.ToString());
    CheckBackends(problem, 1e-4);
  }
}

TEST_CASE("key list: the group of a call is that of its lists of query heads") {
  ProblemShape shape;
  shape.group = 2;
  shape.pattern = "list(x)";
  Rng rng(1);
  const auto cpu = *MakeBackend("cpu", 1);
  Problem problem(shape, 1);
  problem.Bind(RandomNamed(rng, 4, shape));
  Partial partial = problem.Identity();
  AttendArgs args = problem.Args(&problem.all(), &partial);
  REQUIRE(CheckAttendArgs(args, cpu->capabilities()).ok());
  args.group = 1;
  args.heads = {0, 2};
  args.q.heads = args.into.heads = 2;
  REQUIRE(absl::StrContains(CheckAttendArgs(args, cpu->capabilities()).message(), "group: 1; "));
}

TEST_CASE("key list: queries that each see a few scattered tokens") {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const char* pattern : {"list(x)", "list(x) & causal", "list(x) | window(2)"}) {
      Rng rng(11);
      ProblemShape shape;
      shape.kv_tokens = 5000;
      shape.group = 2;
      shape.dtype = shape.q_dtype = dtype;
      shape.pattern = pattern;
      shape.q_ranges = {{100, 101}, {3000, 3100}, {4990, 5000}};
      KeyListData data;
      data.unit = KeyListData::Unit::kTokens;
      data.rows = KeyListData::Rows::kToken;
      data.begin = {0};
      for (int64_t row = 0; row < 5000; ++row) {
        // Few of many blocks, and some rows nothing.
        const int64_t step = rng.Between(30, 300);
        for (int64_t k = rng.Below(200); row % 7 != 0 && k < 5000; k += step) {
          data.keys.push_back(static_cast<int32_t>(k));
        }
        data.begin.push_back(static_cast<int64_t>(data.keys.size()));
      }
      Problem problem(shape, 12);
      problem.Bind({"x", Made(std::move(data))});
      CAPTURE(pattern, Name(dtype));
      CheckBackends(problem, dtype == DType::kBF16 ? 4e-5 : 1e-5);
    }
  }
}

TEST_CASE("key list: queries that each see blocks of their own") {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    Rng rng(seed + 1);
    ProblemShape shape;
    shape.kv_tokens = 64 * 70 + 7;
    shape.group = static_cast<int>(rng.Between(1, 3));
    if (seed % 3 == 1) shape.dtype = shape.q_dtype = DType::kBF16;
    shape.head_dim = shape.v_head_dim = 64;
    shape.pattern = seed % 2 == 0 ? "list(x) & causal" : "list(x) | window(10)";
    shape.q_ranges = {{1000, 1010}, {2000 + rng.Between(0, 63), 3100}, {64 * 70, 64 * 70 + 7}};
    KeyListData data;
    data.rows = KeyListData::Rows::kToken;
    data.block_tokens = int64_t{16} << rng.Below(5);
    data.heads = seed % 4 == 0 ? shape.kv_heads * shape.group : 1;
    data.begin = {0};
    const int64_t blocks = shape.kv_tokens / data.block_tokens + 1;
    for (int64_t row = 0; row < data.heads * shape.kv_tokens; ++row) {
      for (int64_t at = rng.Below(20); row % 5 != 0 && at < blocks; at += rng.Between(1, 40)) {
        data.keys.push_back(static_cast<int32_t>(at));
      }
      data.begin.push_back(static_cast<int64_t>(data.keys.size()));
    }
    Problem problem(shape, seed);
    problem.Bind({"x", Made(std::move(data))});
    CAPTURE(seed, shape.ToString());
    CheckBackends(problem, shape.q_dtype == DType::kBF16 ? 1e-4 : 1e-5);
  }
}

TEST_CASE("key list: a query sees no keys behind the last one, whatever its list shows") {
  ForEachBackend([](Backend* backend) {
    for (uint64_t seed = 1; seed <= 60; ++seed) {
      Rng rng(seed);
      ProblemShape shape;
      shape.kv_tokens = rng.Between(1, 300);
      shape.group = static_cast<int>(rng.Between(1, 2));
      shape.dtype = shape.q_dtype = rng.Below(2) == 0 ? DType::kF32 : DType::kBF16;
      shape.pattern = "list(x)";
      const int64_t queries = rng.Below(2) == 0 ? 1 : std::min<int64_t>(shape.kv_tokens, 90);
      shape.q_ranges = {{shape.kv_tokens - queries, shape.kv_tokens}};
      // Of a context of 400 tokens, of which only kv_tokens are seen.
      KeyListData data;
      const bool tokens = rng.Below(2) == 0;
      data.unit = tokens ? KeyListData::Unit::kTokens : KeyListData::Unit::kBlocks;
      data.block_tokens = 16;
      for (int64_t k = 0; k < (tokens ? 400 : 25); ++k) {
        if (rng.Below(tokens ? 8 : 3) == 0) data.keys.push_back(static_cast<int32_t>(k));
      }
      data.begin = {0, static_cast<int64_t>(data.keys.size())};
      Problem problem(shape, seed);
      problem.Bind({"x", Made(std::move(data))});
      CAPTURE(seed, tokens, shape.ToString());
      Partial partial = problem.Identity();
      REQUIRE(backend->Attend(problem.Args(&problem.all(), &partial)).ok());
      CheckAgainst(problem.Oracle(), OutTolerance(*backend, shape), &partial);
    }
  });
}

// Blocks of 64 that s2 shows each block of queries.
NamedList S2Blocks(const Pattern& s2, int64_t blocks) {
  KeyListData data;
  data.rows = KeyListData::Rows::kBlock;
  data.heads = s2.kv_heads();
  data.begin = {0};
  for (int head = 0; head < data.heads; ++head) {
    for (int64_t q = 0; q < blocks; ++q) {
      for (int64_t k = 0; k <= q; ++k) {
        if (s2.Allows(head, 64 * q + 63, 64 * k)) data.keys.push_back(static_cast<int32_t>(k));
      }
      data.begin.push_back(static_cast<int64_t>(data.keys.size()));
    }
  }
  return {"x", Made(std::move(data))};
}

TEST_CASE("key list: S2 given as a list gives the bits of the built-in S2") {
  for (const char* text : {"s2(64,2,4)", "s2(64,3,5,dense_heads=1)", "s2(64,1,8)", "s2(128,2,3)"}) {
    for (const auto& [dtype, dim] :
         {std::pair{DType::kF32, 16}, std::pair{DType::kBF16, 16}, std::pair{DType::kBF16, 128}}) {
      ProblemShape shape;
      shape.kv_tokens = 64 * 47 + 5;
      shape.group = 2;
      shape.dtype = shape.q_dtype = dtype;
      shape.head_dim = shape.v_head_dim = dim;
      shape.pattern = text;
      const Problem s2(shape, 7);
      shape.pattern = "list(x) & causal";
      Problem listed(shape, 7);
      listed.Bind(S2Blocks(s2.pattern(), BlocksOf(shape.kv_tokens)));
      CAPTURE(text, Name(dtype), dim);
      ForEachKind([&](Backend* backend) {
        Partial a = s2.Identity(), b = listed.Identity();
        REQUIRE(backend->Attend(s2.Args(&s2.all(), &a)).ok());
        REQUIRE(backend->Attend(listed.Args(&listed.all(), &b)).ok());
        const PartialView x = a.view(), y = b.view();
        const auto rows = static_cast<size_t>(x.rows * x.heads);
        REQUIRE(std::memcmp(x.lse, y.lse, rows * sizeof(float)) == 0);
        REQUIRE(std::memcmp(x.out, y.out,
                            rows * static_cast<size_t>(x.v_head_dim) * sizeof(float)) == 0);
      });
    }
  }
}

}  // namespace
}  // namespace annulus
