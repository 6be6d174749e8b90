// `annulus attend` and `explain` in this process: right answers and honest figures, against
// definitions written out here; and every wrong input refused.
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "attention/backend.h"
#include "attention/pattern.h"
#include "sharding/plan.h"
#include "tests/catch.h"
#include "tests/cli/attend_files.h"
#include "tests/cli/program.h"

namespace annulus {
namespace {

using nlohmann::json;
using test::IsRefusal;
using test::Outcome;
using test::RunHere;
using test::TestTensor;

TEST_CASE("attend: every plan, placement and number of workers gives the definition's answer") {
  const Files files;
  for (const std::string pattern : {"causal", "s2(64,1,3)", "window(40) & causal | sink(3)"}) {
    const Expected expected = Attend(files.q, files.k, &files.v, kVDim, pattern, 0.25);
    for (const PlanKind plan : kPlanKinds) {
      for (const std::string placement : {"zigzag", "contiguous", "striped", "block-cyclic:2"}) {
        for (const int workers : {1, 2, 3, 7}) {
          CAPTURE(pattern, Name(plan), placement, workers);
          const Outcome outcome = RunHere(files.Args({{"--plan", std::string(Name(plan))},
                                                      {"--placement", placement},
                                                      {"--workers", absl::StrCat(workers)},
                                                      {"--pattern", pattern}}));
          INFO(outcome.err);
          REQUIRE(outcome.code == 0);
          const auto out = test::ReadF32(files.folder / "out.npy", {kTokens, kHeads, kVDim});
          const auto lse = test::ReadF32(files.folder / "lse.npy", {kTokens, kHeads});
          CHECK(Distance(out, expected.out) < 1e-5);
          CHECK(Distance(lse, expected.lse) < 1e-5);
          const json report = json::parse(outcome.out);
          CHECK(report["plan"] == std::string(Name(plan)));
          CHECK(report["visited_pairs"] == expected.visited_pairs);
          CHECK(report["bytes_moved"] == report["planned_bytes"]);
          CHECK(report["workers"] == workers);
        }
      }
    }
  }
}

TEST_CASE("attend: the report has every field, and they are right") {
  const Files files;
  const Outcome outcome = RunHere(files.Args({{"--repeat", "3"}, {"--backend", "reference"}}));
  REQUIRE(outcome.code == 0);
  CHECK(absl::EndsWith(outcome.out, "}\n"));
  const json report = json::parse(outcome.out);
  CHECK(report["pattern"] == "causal");
  CHECK(report["tokens"] == kTokens);
  CHECK(report["kv_tokens"] == kKvTokens);
  CHECK(report["heads"] == kHeads);
  CHECK(report["kv_heads"] == kKvHeads);
  CHECK(report["head_dim"] == kDim);
  CHECK(report["v_head_dim"] == kVDim);
  CHECK(report["dtype"] == "f32");
  CHECK(report["backend"] == "reference");
  CHECK(report["workers"] == 1);
  CHECK(report["bytes_moved"] == 0);
  const double pairs = report["visited_pairs"].get<double>();
  CHECK(report["density"].get<double>() == Approx(pairs / (kHeads * kTokens * kKvTokens)));
  CHECK(report["elapsed_s"].get<double>() > 0);
}

TEST_CASE("attend: safetensors, narrow dtypes, V as K's prefix, a scale, rows that see nothing") {
  const DType dtype = GENERATE(DType::kF32, DType::kF16, DType::kBF16);
  CAPTURE(Name(dtype));
  const Files files(dtype);
  const std::string all = files.folder / "all.safetensors";
  const std::map<std::string, std::string> from_all = {
      {"--q", all + ":q"}, {"--k", all + ":k"}, {"--v", all + ":v"}, {"--workers", "2"}};
  const auto with = [&](std::map<std::string, std::string> changes) {
    changes.insert(from_all.begin(), from_all.end());
    const Outcome outcome = RunHere(files.Args(changes));
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    return json::parse(outcome.out);
  };
  const double near = dtype == DType::kF32 ? 1e-5 : 2e-2;  // kernels may round the weights

  CHECK(with({})["dtype"] == std::string(Name(dtype)));
  CHECK(Distance(test::ReadF32(files.folder / "out.npy", {kTokens, kHeads, kVDim}),
                 Attend(files.q, files.k, &files.v, kVDim, "causal", 0.25).out) < near);

  with({{"--scale", "-1e-1"}, {"--pattern", "sink(2) & window(265)"}});
  const Expected scaled = Attend(files.q, files.k, &files.v, kVDim, "sink(2) & window(265)", -0.1);
  const auto lse = test::ReadF32(files.folder / "lse.npy", {kTokens, kHeads});
  CHECK(Distance(test::ReadF32(files.folder / "out.npy", {kTokens, kHeads, kVDim}), scaled.out) <
        near);
  CHECK(Distance(lse, scaled.lse) < near);
  CHECK(lse.back() == -INFINITY);

  with({{"--v", ""}, {"--v-head-dim", "8"}});
  CHECK(Distance(test::ReadF32(files.folder / "out.npy", {kTokens, kHeads, 8}),
                 Attend(files.q, files.k, nullptr, 8, "causal", 0.25).out) < near);

  CHECK(with({{"--dtype", "bf16"}})["dtype"] == "bf16");
}

TEST_CASE("attend: sinks take their share once, at any number of workers") {
  const Files files;
  const Expected plain = Attend(files.q, files.k, &files.v, kVDim, "causal", 0.25);
  const double sinks[kHeads] = {1.5, -INFINITY, 0, -40};
  Expected want = plain;
  for (size_t row = 0; row < want.lse.size(); ++row) {
    const double total = std::exp(plain.lse[row]) + std::exp(sinks[row % kHeads]);
    want.lse[row] = std::log(total);
    for (size_t c = 0; c < kVDim; ++c) {
      want.out[row * kVDim + c] *= std::exp(plain.lse[row]) / total;
    }
  }
  for (const char* workers : {"1", "3"}) {
    const Outcome outcome =
        RunHere(files.Args({{"--sinks", "1.5,-inf,0,-40"}, {"--workers", workers}}));
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    const auto out = test::ReadF32(files.folder / "out.npy", {kTokens, kHeads, kVDim});
    CHECK(Distance(out, want.out) < 1e-5);
    CHECK(Distance(test::ReadF32(files.folder / "lse.npy", {kTokens, kHeads}), want.lse) < 1e-5);
  }
}

TEST_CASE("attend: wrong input is refused in one line that names it") {
  const Files files;
  Rng rng(9);
  const auto make = [&](absl::string_view name, DType dtype, std::vector<int64_t> shape) {
    test::WriteBytes(files.folder / name, TestTensor::Random(rng, dtype, std::move(shape)).Npy());
    return files.folder / name;
  };
  TestTensor infinite = files.k;
  infinite.values[7] = INFINITY;
  test::WriteBytes(files.folder / "inf.npy", infinite.Npy());
  TestTensor large = files.k;
  large.values[9] = 1e6f;
  test::WriteBytes(files.folder / "large.npy", large.Npy());
  const std::string f16 = make("f16.npy", DType::kF16, {kTokens, kHeads, kDim});
  const std::string odd = make("odd.npy", DType::kF32, {kTokens, kHeads, 12});
  const std::string odd_k = make("oddk.npy", DType::kF32, {kKvTokens, kKvHeads, 12});
  using Changes = std::map<std::string, std::string>;
  const std::pair<Changes, std::string> cases[] = {
      {{{"--q", ""}}, "--q"},
      {{{"--out", ""}}, "--out"},
      {{{"--pattern", ""}}, "--pattern"},
      {{{"--v", ""}}, "--v"},
      {{{"--q", files.folder / "none.npy"}}, "none.npy"},
      {{{"--q", "/tmp"}}, "/tmp"},
      {{{"--q", "/dev/null.npy"}}, "/dev/null.npy"},
      {{{"--q", files.folder / "all.safetensors"}}, "safetensors:name"},
      {{{"--q", files.folder / "all.safetensors:none"}}, "none"},
      {{{"--out", files.folder / "no/out.npy"}}, "no/out.npy"},
      {{{"--lse", files.folder / ""}}, "npy"},
      {{{"--k", files.folder / "q.npy"}}, "v"},
      {{{"--q", files.folder / "k.npy"},
        {"--k", files.folder / "q.npy"},
        {"--v", ""},
        {"--v-head-dim", "8"}},
       "heads"},
      {{{"--q", make("long.npy", DType::kF32, {kKvTokens + 1, kHeads, kDim})}}, "331"},
      {{{"--q", make("three.npy", DType::kF32, {kTokens, 3, kDim})}}, "heads"},
      {{{"--q", make("wide.npy", DType::kF32, {kTokens, kHeads, 32})}}, "q"},
      {{{"--q", odd}, {"--k", odd_k}}, "12"},
      {{{"--q", f16}}, "dtype"},
      {{{"--v", files.folder / "q.npy"}}, "v"},
      {{{"--v-head-dim", "8"}}, "--v-head-dim"},
      {{{"--v", ""}, {"--v-head-dim", "24"}}, "--v-head-dim"},
      {{{"--k", files.folder / "inf.npy"}}, "k[0, 0, 7]"},
      {{{"--k", files.folder / "large.npy"}, {"--dtype", "f16"}}, "k[0, 0, 9]"},
      {{{"--scale", "nan"}}, "--scale"},
      {{{"--scale", "-inf"}}, "--scale"},
      {{{"--scale", "1e39"}}, "--scale"},
      {{{"--scale", "x"}}, "--scale"},
      {{{"--sinks", "1"}}, "number of sinks: 1; expected 4"},
      {{{"--sinks", "1,2,nan,0"}}, "sink of head 2: nan"},
      {{{"--sinks", "1,2,,0"}}, "--sinks"},
      {{{"--pattern", "causl"}}, "causl"},
      {{{"--pattern", "docs(10,10)"}}, "330 tokens"},
      {{{"--pattern", "docs(300,40)"}}, "documents of 340 tokens in all; expected 330"},
      {{{"--pattern", "\x1b[31m\n"}}, "\\x1b"},
      {{{"--plan", "rings"}}, "rings"},
      {{{"--placement", "zagzig"}}, "zagzig"},
      {{{"--placement", "block-cyclic:0"}}, "block-cyclic:0"},
      {{{"--dtype", "f8"}}, "f8"},
      {{{"--backend", "tpu"}}, "tpu"},
      {{{"--workers", "0"}}, "--workers"},
      {{{"--repeat", "0"}}, "--repeat"},
      {{{"--workers", "2"}, {"--endpoint", "localhost:1"}}, "--endpoint"},
      {{{"--endpoint", "localhost"}}, "--endpoint"},
      {{{"--endpoint", "localhost:1"}, {"--scale", "0"}}, "--scale"},
      {{{"--kv-placement", "rows"}}, "--kv-placement"},
      {{{"--upload", "raley"}}, "raley"},
      {{{"--config", files.folder / "none.conf"}}, "none.conf"},
      {{{"--q-start", "-1"}}, "--q-start"},
      {{{"--q-start", "16G"}}, "q_start"},
      {{{"--keys", "5"}}, "A:B"},
      {{{"--keys", "5:3"}}, "keys: 5:3; expected"},
      {{{"--keys", "7:7"}}, "keys: 7:7; expected"},
      {{{"--keys", "0:331"}}, "keys: 0:331; expected"},
  };
  for (const auto& [changes, part] : cases) {
    const Outcome outcome = RunHere(files.Args(changes));
    INFO(outcome.code << " " << outcome.err << " should name " << part);
    CHECK(IsRefusal(outcome));
    CHECK(absl::StrContains(outcome.err, part));
  }
  CHECK(IsRefusal(RunHere({"atend"})));
  CHECK(IsRefusal(RunHere({std::string(100000, 'x')})));
}

TEST_CASE("explain: pairs by brute force, and sums that agree") {
  const std::string pattern = GENERATE("causal", "s2(64,1,3)", "power(64,1,1)", "window(9,4)");
  const int workers = GENERATE(1, 3, 4);
  CAPTURE(pattern, workers);
  const Pattern parsed = Pattern::Parse(pattern, kKvHeads).value();
  int64_t visited = 0;
  int64_t work = 0;
  for (int head = 0; head < kHeads; ++head) {
    for (int64_t q_block = 0; q_block < BlocksOf(kKvTokens); ++q_block) {
      for (int64_t k_block = 0; k_block < BlocksOf(kKvTokens); ++k_block) {
        int64_t existing = 0;
        int64_t allowed = 0;
        for (int64_t q = std::max(64 * q_block, kKvTokens - kTokens);
             q < std::min(64 * q_block + 64, kKvTokens); ++q) {
          for (int64_t k = 64 * k_block; k < std::min(64 * k_block + 64, kKvTokens); ++k) {
            ++existing;
            allowed += parsed.Allows(head / (kHeads / kKvHeads), q, k);
          }
        }
        visited += allowed;
        if (allowed > 0) work += existing;
      }
    }
  }
  const test::TempFolder folder;
  const Outcome outcome =
      RunHere({"explain", "--tokens", absl::StrCat(kKvTokens), "--q-tokens", absl::StrCat(kTokens),
               "--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--workers",
               absl::StrCat(workers), "--pattern", pattern, "--svg", folder / "map.svg", "--json"});
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  const json report = json::parse(outcome.out);
  CHECK(report["visited_pairs"] == visited);
  CHECK(report["work_pairs"] == work);
  CHECK(report["density"].get<double>() ==
        Approx(static_cast<double>(visited) / (kHeads * kTokens * kKvTokens)));
  CHECK(report["dtype"] == "bf16");
  REQUIRE(static_cast<int>(report["workers"].size()) == workers);
  int64_t work_sum = 0;
  int64_t work_max = 0;
  int64_t sent = 0;
  int64_t received = 0;
  for (const json& worker : report["workers"]) {
    work_sum += worker["work_pairs"].get<int64_t>();
    work_max = std::max(work_max, worker["work_pairs"].get<int64_t>());
    sent += worker["bytes_sent"].get<int64_t>();
    received += worker["bytes_received"].get<int64_t>();
  }
  CHECK(work_sum == work);
  CHECK(sent == report["bytes_total"]);
  CHECK(received == report["bytes_total"]);
  CHECK(report["imbalance"].get<double>() ==
        Approx(static_cast<double>(work_max) * workers / static_cast<double>(work_sum)));
  int chosen = 0;
  double cheapest = INFINITY;
  for (const json& candidate : report["candidates"]) {
    cheapest = std::min(cheapest, candidate["cost_s"].get<double>());
    if (!candidate["chosen"].get<bool>()) continue;
    ++chosen;
    CHECK(candidate["plan"] == report["plan"]);
    CHECK(candidate["cost_s"].get<double>() == cheapest);  // cheapest first
  }
  CHECK(chosen == 1);
  CHECK(absl::StartsWith(test::ReadBytes(folder / "map.svg"), "<svg"));
}

TEST_CASE("explain: the asked-for plan is chosen, the cluster file counts, people get a table") {
  const test::TempFolder folder;
  test::WriteBytes(folder / "c.json", R"({"nodes": 2, "workers_per_node": 2, "flops": 1e12})");
  Arguments args = {"explain",    "--tokens", "64K",        "--heads",   "8",
                    "--kv-heads", "4",        "--head-dim", "64",        "--pattern",
                    "causal",     "--plan",   "heads",      "--cluster", folder / "c.json"};
  const auto with = [&](const Arguments& more) {
    Arguments all = args;
    all.insert(all.end(), more.begin(), more.end());
    return RunHere(all);
  };
  const Outcome table = with({"--workers", "4"});
  CHECK(table.code == 0);
  CHECK(table.err.empty());
  CHECK(absl::StrContains(table.out, "heads"));
  CHECK(json::parse(with({"--workers", "4", "--json"}).out)["plan"] == "heads");
  const Outcome refused = with({"--workers", "5"});
  CHECK(IsRefusal(refused));
  CHECK(absl::StrContains(refused.err, "--workers"));
  CHECK(IsRefusal(with({"--svg", folder / "no/map.svg"})));
}

TEST_CASE("explain: S2 over heads that cover the context, and over too few") {
  const auto coverage = [](const std::string& kv_heads, const std::string& pattern) {
    const Outcome outcome =
        RunHere({"explain", "--tokens", "64K", "--q-tokens", "1", "--heads", "8", "--kv-heads",
                 kv_heads, "--head-dim", "64", "--pattern", pattern, "--json"});
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    return json::parse(outcome.out)["coverage"].get<double>();
  };
  CHECK(coverage("4", "s2(64,4,4)") == 1);
  CHECK(coverage("2", "s2(64,4,4)") < 0.6);
}

TEST_CASE("help and version") {
  CHECK(absl::StrContains(RunHere({}).out, "attend"));
  for (const char* command : {"attend", "explain", "up", "status", "coordinator", "worker",
                              "version", "demo", "methods", "quality"}) {
    CAPTURE(command);
    const Outcome help = RunHere({command, "--help"});
    CHECK(help.code == 0);
    CHECK(absl::StrContains(help.out, "--config"));
  }
  const json version = json::parse(RunHere({"version", "--json"}).out);
  CHECK(version["cuda"] == BuiltWithCuda());
  CHECK_FALSE(version["simd"].get<std::string>().empty());
  CHECK(RunHere({"--version"}).out == RunHere({"version"}).out);
}

}  // namespace
}  // namespace annulus
