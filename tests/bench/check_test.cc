// The check of annulus_bench finds what is wrong: a row, or a plan that forgets something.
#include "bench/plans/check.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "comm/local/local_exchange.h"
#include "runtime/cli/problem.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/rows.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr float kScale = 0.25f;

Problem ProblemOf(const std::string& pattern, DType dtype, int workers = 1,
                  int64_t q_tokens = 700) {
  ProblemFlags flags;
  flags.q_tokens = q_tokens;
  flags.kv_tokens = 1000;
  flags.heads = 4;
  flags.kv_heads = 2;
  flags.head_dim = 32;
  flags.v_head_dim = 16;
  flags.dtype = dtype;
  flags.workers = workers;
  flags.pattern = pattern;
  return MakeProblem(flags).value();
}

// The right answer of all rows, by the CPU backend.
Partial Answer(const Inputs& inputs, const Problem& problem) {
  const std::vector<TokenRange> ranges = {problem.q_range()};
  const InputQueries q = MakeQueries(inputs, problem, ranges, HostMemory(), 1).value();
  const InputPages pages =
      MakePages(inputs, problem, {0, problem.kv_heads}, problem.KvBlocks(), HostMemory(), 1)
          .value();
  const BlockSet keys = problem.KvBlocks();
  Partial answer(problem.q_tokens, problem.heads, problem.v_head_dim);
  AttendArgs args;
  args.q = q.view;
  args.q_ranges = ranges;
  args.heads = {0, problem.heads};
  args.kv_tokens = problem.kv_tokens;
  args.group = problem.group();
  args.kv = &pages.table;
  args.pattern = &problem.pattern;
  args.keys = &keys;
  args.scale = kScale;
  args.into = answer.view();
  REQUIRE((*MakeBackend("cpu", 1))->Attend(args).ok());
  REQUIRE(Finalise(answer.view()).ok());
  return answer;
}

CheckResult Check(const Inputs& inputs, const Problem& problem, Partial& answer, int rows_max,
                  MemoryKind computed_in = MemoryKind::kHost) {
  const auto result = CheckRows(inputs, problem, kScale, {problem.q_range()}, answer.view(),
                                /*seed=*/5, rows_max, computed_in);
  REQUIRE(result.ok());
  return *result;
}

TEST_CASE("a right answer passes, and its error is told", "[check]") {
  const DType dtype = GENERATE(DType::kF32, DType::kF16, DType::kBF16);
  const std::string pattern = GENERATE("causal", "s2(64,2,4)", "window(5,3) | sink(1)");
  CAPTURE(Name(dtype), pattern);
  const Inputs inputs(11);
  const Problem problem = ProblemOf(pattern, dtype);
  Partial answer = Answer(inputs, problem);
  const CheckResult result = Check(inputs, problem, answer, 40);
  CHECK(result.wrong == "");
  CHECK(result.rows == 40);
  CHECK(result.max_rel_err > 0);
  CHECK(result.max_rel_err <= ToleranceOf(dtype, MemoryKind::kHost).out);
}

TEST_CASE("an lse that a GPU may tell is wrong on a CPU", "[check]") {
  const Inputs inputs(14);
  const Problem problem = ProblemOf("causal", DType::kBF16);
  Partial answer = Answer(inputs, problem);
  const PartialView view = answer.view();
  for (int64_t i = 0; i < view.rows * view.heads; ++i) view.lse[i] += 2e-4f;
  CHECK(Check(inputs, problem, answer, 40, MemoryKind::kDevice).wrong == "");
  CHECK(Check(inputs, problem, answer, 40).wrong != "");
  for (int64_t i = 0; i < view.rows * view.heads; ++i) view.lse[i] += 2e-3f;
  CHECK(Check(inputs, problem, answer, 40, MemoryKind::kDevice).wrong != "");
}

TEST_CASE("one wrong row is found and named", "[check]") {
  const DType dtype = GENERATE(DType::kF32, DType::kBF16);
  const int what = GENERATE(0, 1, 2, 3);
  CAPTURE(Name(dtype), what);
  const Inputs inputs(12);
  const Problem problem = ProblemOf("causal", dtype, /*workers=*/1, /*q_tokens=*/70);
  Partial answer = Answer(inputs, problem);
  const int64_t row = 45;  // at position 975, head 2
  const int64_t at = row * problem.heads + 2;
  float* out = answer.view().out + at * problem.v_head_dim;
  if (what == 0) out[7] += 0.1f;
  if (what == 1) answer.view().lse[at] += 0.01f;
  if (what == 2) out[0] = std::nanf("");
  if (what == 3) std::fill(out, out + problem.v_head_dim, 0.0f);
  // All of them are drawn, each once.
  const CheckResult result = Check(inputs, problem, answer, 1400);
  INFO(result.wrong);
  CHECK(result.rows == 280);
  CHECK(absl::StartsWith(result.wrong, "query 975, head 2: "));
}

TEST_CASE("rows are drawn once each, and no more of them than there are", "[check]") {
  const Inputs inputs(16);
  const Problem problem = ProblemOf("causal", DType::kF32, /*workers=*/1, /*q_tokens=*/3);
  // Whichever of the 12 rows is wrong, 12 draws find it.
  for (int64_t at = 0; at < 12; ++at) {
    CAPTURE(at);
    Partial answer = Answer(inputs, problem);
    answer.view().lse[at] += 1;
    const CheckResult all = Check(inputs, problem, answer, 12);
    CHECK(all.rows == 12);
    CHECK(all.wrong != "");
    CHECK(Check(inputs, problem, answer, 1000).rows == 12);
  }
}

TEST_CASE("a row that sees nothing must say so", "[check]") {
  const Inputs inputs(13);
  // Key 0 alone: queries from 300 on are further away than 100.
  const Problem problem = ProblemOf("sink(1) & window(100)", DType::kF32);
  Partial answer = Answer(inputs, problem);
  CHECK(Check(inputs, problem, answer, 20).wrong == "");
  for (int64_t i = 0; i < 2800; ++i) answer.view().lse[i] = -1000;
  CHECK(Check(inputs, problem, answer, 20).wrong != "");
}

TEST_CASE("the oracle's merged blocks are attention over all of them", "[check]") {
  const Inputs inputs(14);
  ProblemFlags flags;
  flags.q_tokens = 1;
  flags.kv_tokens = 40'000;  // more blocks than it holds at a time
  flags.heads = flags.kv_heads = 1;
  flags.head_dim = flags.v_head_dim = 8;
  flags.dtype = DType::kF32;
  flags.pattern = "causal";
  const Problem problem = MakeProblem(flags).value();
  const InputPages pages =
      MakePages(inputs, problem, {0, 1}, problem.KvBlocks(), HostMemory(), 1).value();
  const InputQueries q = MakeQueries(inputs, problem, {problem.q_range()}, HostMemory(), 1).value();
  const ReferenceAnswer whole = ReferenceRow(q.view.data, DType::kF32, pages.table, 40'000,
                                             problem.pattern, 0, 39'999, kScale)
                                    .value();
  const ReferenceAnswer merged = OracleRow(inputs, problem, kScale, 39'999, 0).value();
  CHECK(merged.lse == Approx(whole.lse).epsilon(1e-13));
  for (size_t c = 0; c < 8; ++c) CHECK(merged.out[c] == Approx(whole.out[c]).epsilon(1e-9));
}

// The ranks of a plan in threads, each with its own pages; what the check says of all of them.
std::vector<std::string> RunAndCheck(const Plan& plan, const Inputs& inputs) {
  const auto exchanges = MakeLocalExchanges(plan.world());
  std::vector<std::string> wrong(exchanges.size());
  std::vector<std::thread> threads;
  for (int rank = 0; rank < plan.world(); ++rank) {
    threads.emplace_back([&, rank] {
      const Problem& problem = plan.problem();
      const Rows rows(plan.HomeRows(rank), problem.q_range());
      const InputQueries q = MakeQueries(inputs, problem, rows.ranges(), HostMemory(), 1).value();
      const InputPages pages = MakePages(inputs, problem, {0, problem.kv_heads},
                                         problem.HeldBlocks(rank), HostMemory(), 1)
                                   .value();
      RankTask task;
      task.plan = &plan;
      task.rank = rank;
      task.q = q.view;
      task.kv = &pages.table;
      task.scale = kScale;
      absl::StatusOr<RankResult> result =
          RunRank(task, **MakeBackend("cpu", 1), *exchanges[static_cast<size_t>(rank)]);
      wrong[static_cast<size_t>(rank)] =
          !result.ok() ? result.status().ToString()
                       : CheckRows(inputs, problem, kScale, rows.ranges(), result->home.view, 1,
                                   /*rows_max=*/500, MemoryKind::kHost)
                             .value()
                             .wrong;
    });
  }
  for (std::thread& thread : threads) thread.join();
  return wrong;
}

TEST_CASE("a plan that forgets a launch gives a wrong row", "[check]") {
  const Inputs inputs(15);
  const Problem problem = ProblemOf("causal", DType::kF32, /*workers=*/3);
  const Plan good = BuildPlan(PlanKind::kRing, problem).value();
  CHECK(RunAndCheck(good, inputs) == std::vector<std::string>(3));
  std::vector<Round> rounds = good.rounds();
  for (Round& round : rounds) {
    const size_t before = round.computes.size();
    std::erase_if(round.computes, [](const Compute& compute) { return compute.rank == 1; });
    if (round.computes.size() < before) break;  // one launch is enough
  }
  const std::vector<std::string> wrong =
      RunAndCheck(Plan(good.kind(), problem, std::move(rounds)), inputs);
  const auto named = [](const std::string& w) { return absl::StartsWith(w, "query "); };
  CHECK(std::any_of(wrong.begin(), wrong.end(), named));
  CHECK(std::all_of(wrong.begin(), wrong.end(),
                    [&](const auto& w) { return w.empty() || named(w); }));
}

}  // namespace
}  // namespace annulus
