// `annulus explain` and what it is weighed with: balance under group-cast, the terms of the cost
// model, this machine's calibration kept in a file, and predicted times beside measured ones.
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/cli/files/cluster_file.h"
#include "tests/catch.h"
#include "tests/cli/program.h"

namespace annulus {
namespace {

using nlohmann::json;
using test::Outcome;
using test::RunHere;

Arguments Explain(int64_t tokens, int workers, const std::string& pattern) {
  return {"explain",
          "--tokens",
          absl::StrCat(tokens),
          "--heads",
          "16",
          "--kv-heads",
          "8",
          "--head-dim",
          "64",
          "--workers",
          absl::StrCat(workers),
          "--pattern",
          pattern,
          "--json"};
}

json CandidateOf(const json& report, const std::string& plan) {
  for (const json& candidate : report["candidates"]) {
    if (candidate["plan"] == plan) return candidate;
  }
  FAIL("no candidate " << plan);
  return {};
}

TEST_CASE("explain: group-cast balances at 64 blocks a worker where contiguous rows do not") {
  for (int workers : {2, 7, 64}) {
    const int64_t tokens = int64_t{64} * 64 * workers;
    for (const std::string& pattern :
         {std::string("causal"), std::string("s2(64,16,16)"),
          std::string("s2(64,16,16,dense_heads=1)"),
          std::string("heads(0-3: causal & window(8192); 4-7: causal)"),
          absl::StrCat("docs(", tokens * 3 / 4, ",", tokens - tokens * 3 / 4, ") & causal")}) {
      CAPTURE(workers, pattern);
      const Outcome outcome = RunHere(Explain(tokens, workers, pattern));
      REQUIRE(outcome.code == 0);
      const json report = json::parse(outcome.out);
      CHECK(CandidateOf(report, "group-cast")["imbalance"].get<double>() <= 1.05);
      CHECK(CandidateOf(report, "ring-contiguous")["imbalance"].get<double>() > 1.05);
    }
  }
}

TEST_CASE("explain: the terms of a candidate add up") {
  const json report = json::parse(RunHere(Explain(1 << 15, 4, "s2(64,4,16)")).out);
  CHECK(report["calibration"]["flops"].get<double>() > 0);
  for (const json& candidate : report["candidates"]) {
    CAPTURE(candidate.dump());
    const auto term = [&](const char* name) { return candidate[name].get<double>(); };
    CHECK(term("cost_s") == Approx(term("compute_s") + term("exposed_comm_s") + term("merge_s")));
    CHECK(term("exposed_comm_s") <= term("comm_s"));
    CHECK(term("latency_s") <= term("comm_s"));
  }
}

TEST_CASE("explain: what all queries see, and what the last one does") {
  // Each head's local window shows every key to some query; the last query sees its window and
  // every 64th block of each of eight heads.
  const Arguments args = {"explain", "--tokens",   "1M", "--heads",   "8",           "--kv-heads",
                          "8",       "--head-dim", "64", "--pattern", "s2(64,16,64)"};
  Arguments with_json = args;
  with_json.push_back("--json");
  const json report = json::parse(RunHere(with_json).out);
  CHECK(report["coverage"].get<double>() == 1.0);
  CHECK(report["coverage_last"].get<double>() == Approx(0.1259).margin(0.001));
  const Outcome table = RunHere(args);
  CHECK(table.err.empty());
  CHECK(absl::StrContains(table.out, "100.00% of the keys to some query, 12.59% to the last one"));
}

TEST_CASE("explain: words that choose by data are counted without any") {
  // Of 1,000 queries, each but the first ones sees its own block of 64 up to itself and three whole
  // ones; 8 query heads over 4.
  const auto explain = [](const std::string& pattern, const std::string& tokens) {
    return RunHere({"explain", "--tokens", tokens, "--heads", "8", "--kv-heads", "4", "--head-dim",
                    "64", "--workers", "2", "--pattern", pattern, "--json"});
  };
  int64_t pairs = 0;
  for (int64_t q = 0; q < 1000; ++q) pairs += std::min<int64_t>(q / 64, 3) * 64 + q % 64 + 1;
  const json moba = json::parse(explain("moba(64,4)", "1000").out);
  CHECK(moba["visited_pairs"] == 8 * pairs);
  CHECK(moba["stand_ins"] == std::vector<std::string>{"moba(64,4)"});
  CHECK(moba["lists"].empty());
  pairs = 0;
  for (int64_t q = 0; q < 1000; ++q) pairs += std::min<int64_t>(q + 1, 100);
  CHECK(json::parse(explain("dsa(100)", "1000").out)["visited_pairs"] == 8 * pairs);
  const Outcome threshold = explain("xattention(0.9)", "1000");
  CHECK(threshold.code == 2);
  CHECK(absl::StrContains(threshold.err, "chooses keys by data"));
  const Outcome many = explain("dsa(2048)", "1M");
  CHECK(many.code == 2);
  CHECK(absl::StrContains(many.err, "q-tokens: 1048576, each of which sees 2048 units"));
}

TEST_CASE("explain: this machine is measured once, and what was kept is used") {
  const test::TempFolder folder;
  const std::string path = folder / "kept/machine.json";
  const test::Variables variables = {{"ANNULUS_CALIBRATION", path}};
  const Arguments args = Explain(4096, 2, "causal");
  const json first = json::parse(RunHere(args, variables).out)["calibration"];
  CHECK(first["source"] == path);
  CHECK(json::parse(RunHere(args, variables).out)["calibration"] == first);
  // The file is one for --cluster too, and two workers share the machine.
  const absl::StatusOr<ClusterFile> kept = ReadCluster(path);
  REQUIRE(kept.ok());
  CHECK(kept->shared);
  CHECK(kept->model.flops == Approx(2 * first["flops"].get<double>()));
  CHECK(kept->model.inside_latency_s == Approx(first["inside_latency_s"].get<double>()));

  // What was measured while others had the cores is measured again, some minutes later; it may get
  // better, not worse.
  ClusterFile slow = *kept;
  slow.model.flops = 1;
  slow.model.read_bytes_per_s = 1e15;
  // So is what names no share.
  slow.others_share = GENERATE(std::optional<double>(0.9), std::nullopt);
  test::WriteBytes(path, ToJson(slow));
  CHECK(json::parse(RunHere(args, variables).out)["calibration"]["flops"] == 0.5);
  std::filesystem::last_write_time(
      path, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
  const json again = json::parse(RunHere(args, variables).out)["calibration"];
  CHECK(again["flops"].get<double>() > 1e6);
  CHECK(again["read_bytes_per_s"].get<double>() == Approx(1e15 / 2));
  REQUIRE(ReadCluster(path)->others_share.has_value());
  CHECK(*ReadCluster(path)->others_share <= slow.others_share.value_or(1));

  // Another machine's figures are not believed; a damaged file is named.
  test::WriteBytes(path, R"({"machine": "an abacus", "shared": true, "flops": 1})");
  CHECK(json::parse(RunHere(args, variables).out)["calibration"]["flops"].get<double>() > 1e6);
  test::WriteBytes(path, R"({"machine": "an abacus", "flops": -1})");
  const Outcome refused = RunHere(args, variables);
  CHECK(test::IsRefusal(refused));
  CHECK(absl::StrContains(refused.err, "machine.json"));
  CHECK(absl::StrContains(refused.err, "flops"));
  // What somebody else wrote is not overwritten.
  for (const std::string theirs : {R"({"nodes": 2, "workers_per_node": 4})", "{}", "notes"}) {
    test::WriteBytes(path, theirs);
    const Outcome kept_out = RunHere(args, variables);
    CHECK(test::IsRefusal(kept_out));
    CHECK(absl::StrContains(kept_out.err, "machine.json"));
    CHECK(test::ReadBytes(path) == theirs);
  }
  test::WriteBytes(folder / "file", "");
  CHECK(test::IsRefusal(RunHere(args, {{"ANNULUS_CALIBRATION", folder / "file/machine.json"}})));
}

TEST_CASE("cluster files: what calibration writes is read back, and refusals by field") {
  ClusterFile file;
  file.machine = "m \"1\"\n";
  file.shared = true;
  file.model.flops = 3e13;
  file.model.flops_f32 = 2e13;
  file.model.launch_s = 7e-6;
  const absl::StatusOr<ClusterFile> back = ParseCluster(ToJson(file));
  REQUIRE(back.ok());
  CHECK(back->machine == file.machine);
  CHECK(back->shared);
  CHECK(back->model.flops_f32 == Approx(2e13));
  CHECK(back->model.launch_s == Approx(7e-6));
  CHECK(ModelFor(*back, 4)->flops == Approx(3e13 / 4));
  CHECK(ModelFor(*back, 4)->launch_s == Approx(7e-6));
  CHECK(ParseCluster(R"({"flops": 5})")->model.flops_f32 == 5);
  for (const char* bad : {R"({"shared": 1})", R"({"machine": 1})", R"({"launch_us": -1})",
                          R"({"flops_f32": 0})", R"({"flops_f64": 1})", R"({"others_share": 2})"}) {
    CAPTURE(bad);
    CHECK(ParseCluster(bad).status().code() == absl::StatusCode::kInvalidArgument);
  }
}

TEST_CASE("attend: predicted times stand beside measured ones") {
  const test::TempFolder folder;
  Rng rng(3);
  test::WriteBytes(folder / "q.npy",
                   test::TestTensor::Random(rng, DType::kF32, {512, 4, 32}).Npy());
  test::WriteBytes(folder / "k.npy",
                   test::TestTensor::Random(rng, DType::kF32, {512, 2, 32}).Npy());
  const Arguments args = {"attend",
                          "--q",
                          folder / "q.npy",
                          "--k",
                          folder / "k.npy",
                          "--v",
                          folder / "k.npy",
                          "--out",
                          folder / "o.npy",
                          "--pattern",
                          "causal",
                          "--workers",
                          "3",
                          "--plan",
                          "group-cast"};
  Arguments with_json = args;
  with_json.push_back("--json");
  const Outcome outcome = RunHere(with_json);
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  const json report = json::parse(outcome.out);
  CHECK(report["predicted"]["cost_s"].get<double>() > 0);
  CHECK(report["compute_s"].get<double>() > 0);
  CHECK(report["compute_s"].get<double>() <= report["elapsed_s"].get<double>());
  CHECK(report["exposed_comm_s"].get<double>() >= 0);
  CHECK(report["calibration"]["source"].get<std::string>().size() > 0);
  const Outcome table = RunHere(args);
  CHECK(absl::StrContains(table.err, "predicted"));
  CHECK(absl::StrContains(table.err, "measured"));
}

TEST_CASE("explain: candidates run beside their costs, and move what was planned") {
  Arguments args = Explain(2048, 3, "s2(64,4,4)");
  args.push_back("--measure");
  const json report = json::parse(RunHere(args).out);
  REQUIRE(!report["candidates"].empty());
  for (const json& candidate : report["candidates"]) {
    CAPTURE(candidate.dump());
    const json& measured = candidate["measured"];
    CHECK(measured["bytes_moved"] == candidate["bytes_total"]);
    CHECK(measured["compute_s"].get<double>() > 0);
    CHECK(measured["compute_s"].get<double>() <= measured["elapsed_s"].get<double>());
  }

  Arguments huge = Explain(1 << 24, 2, "window(64)");
  huge.push_back("--measure");
  const Outcome refused = RunHere(huge);
  CHECK(refused.code == 2);
  CHECK(absl::StrContains(refused.err, "--measure: "));
}

}  // namespace
}  // namespace annulus
