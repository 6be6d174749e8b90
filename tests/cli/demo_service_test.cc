// The demo's requests against a service in this process, over real gRPC, and its verdicts.
#include <signal.h>

#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/client.h"
#include "runtime/cli/demo/phases.h"
#include "runtime/server/server.h"
#include "tests/catch.h"
#include "tests/cli/program.h"
#include "tests/runtime/local_cluster.h"

namespace annulus {
namespace {

std::vector<pid_t> ChildrenOf(pid_t parent) {
  std::ifstream file(absl::StrCat("/proc/", parent, "/task/", parent, "/children"));
  std::vector<pid_t> children;
  for (pid_t child; file >> child;) children.push_back(child);
  return children;
}

// The coordinator of the cluster that `demo` has started; 0 if there is none.
pid_t CoordinatorOf(pid_t demo) {
  for (const pid_t up : ChildrenOf(demo)) {
    for (const pid_t child : ChildrenOf(up)) {
      const std::string command = test::ReadBytes(absl::StrCat("/proc/", child, "/cmdline"));
      if (absl::StrContains(command, absl::string_view("\0coordinator\0", 13))) return child;
    }
  }
  return 0;
}

}  // namespace

TEST_CASE("demo: every phase is as it must be on clusters of any size") {
  const auto [workers, tokens] =
      GENERATE(std::pair{1, 4096}, std::pair{4, 8192}, std::pair{7, 5000});
  CAPTURE(workers, tokens);
  test::LocalCluster cluster({.workers = workers, .backend = "cpu"});
  RpcServerOptions options;
  options.service = &cluster.service();
  const std::unique_ptr<RpcServer> server = RpcServer::Start(options).value();
  const std::unique_ptr<Client> client =
      Client::Connect(
          {.endpoint = absl::StrCat("localhost:", server->port()), .upload = Upload::kRelay})
          .value();

  DemoReport report;
  report.tokens = tokens;
  report.seed = 11;
  const DemoData data(report.seed, tokens);
  const Pattern causal = Pattern::Parse("causal", kDemoKvHeads).value();
  const Pattern s2 = Pattern::Parse("s2(64,16,4)", kDemoKvHeads).value();
  const ContextInfo context = client->CreateContext(DemoContext(tokens, workers)).value();
  const std::unique_ptr<Backend> backend = MakeBackend("cpu", 1).value();
  DemoPhases phases(client.get(), context.id, &data, backend.get(), &report);
  int64_t last = 0;
  std::vector<TraceSpan> trace;
  REQUIRE(phases
              .Upload([&](int64_t done, int64_t all) {
                CHECK(done >= last);
                CHECK(all == DemoKvBytes(tokens));
                last = done;
              })
              .ok());
  CHECK(last == DemoKvBytes(tokens));
  REQUIRE(phases.RunChunk(s2, &trace).ok());
  REQUIRE(phases.RunDecode(causal).ok());
  REQUIRE(phases.RunDecode(s2).ok());
  REQUIRE(phases.CompareSample().ok());

  Judge(&report);
  for (const std::string& failure : report.failures) FAIL_CHECK(failure);
  REQUIRE(report.phases.size() == 4);
  CHECK(report.phases[0].plan == "pass-q");
  CHECK(report.phases[1].plan == "group-cast");
  CHECK(report.phases[2].recall.visible == kDemoAssociations * kDemoHeads);
  CHECK(report.phases[3].recall.visible < kDemoAssociations * kDemoHeads);
  for (const DemoPhase& phase : report.phases) {
    INFO(phase.name << " " << phase.plan);
    CHECK(phase.rows_checked == 8);
    CHECK(phase.out_error > 0);  // f32 against float64
  }
  CHECK(trace.size() > static_cast<size_t>(workers));

  // A report that is not as it must be says so.
  report.phases[0].bytes_moved += 1;
  report.phases[1].out_error = 1;
  report.phases[2].recall.found -= 1;
  report.phases[3].recall.stray += 1;
  report.plans_difference = 1;
  Judge(&report);
  CHECK(report.failures.size() == 5);
}

TEST_CASE("demo: the program, its cluster of processes and its files") {
  const test::TempFolder folder;
  const std::string out_dir = folder / "made/by/it";
  const test::Outcome outcome = test::RunProgram(
      {"demo", "--tokens", "4K", "--workers", "2", "--out-dir", out_dir, "--json"});
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  const auto json = nlohmann::json::parse(outcome.out);
  CHECK(json["tokens"] == 4096);
  CHECK(json["workers"] == 2);
  CHECK(json["phases"].size() == 4);
  CHECK(json["failures"].empty());
  CHECK(test::ReadBytes(out_dir + "/block-map.svg").rfind("<svg", 0) == 0);
  const auto trace = nlohmann::json::parse(test::ReadBytes(out_dir + "/trace.json"));
  std::set<std::string> processes;
  for (const auto& event : trace["traceEvents"]) {
    if (event["name"] == "process_name") processes.insert(event["args"]["name"]);
  }
  CHECK(processes == std::set<std::string>{"client", "coordinator", "worker 1", "worker 2"});
}

TEST_CASE("demo: a cluster that has to wait for a core is not given up") {
  const test::TempFolder folder;
  const std::string out_dir = folder / "out";
  test::Program demo({"demo", "--tokens", "16K", "--workers", "2", "--out-dir", out_dir});
  const absl::Time deadline = absl::Now() + absl::Minutes(2);
  while (!absl::StrContains(demo.err(), "demo: uploaded") && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  const pid_t coordinator = CoordinatorOf(demo.pid());
  REQUIRE(coordinator != 0);
  REQUIRE(kill(coordinator, SIGSTOP) == 0);
  absl::SleepFor(absl::Seconds(3));
  REQUIRE(kill(coordinator, SIGCONT) == 0);
  const test::Outcome outcome = demo.Wait();
  INFO(outcome.err);
  CHECK(outcome.code == 0);
}

TEST_CASE("demo: what makes no sense is refused before anything starts") {
  const test::TempFolder folder;
  test::WriteBytes(folder / "file", "");
  const std::string in_the_way = folder / "file";
  CHECK(test::IsRefusal(test::RunHere({"demo", "--tokens", "63"})));
  CHECK(test::IsRefusal(test::RunHere({"demo", "--workers", "0"})));
  CHECK(test::IsRefusal(test::RunHere({"demo", "--backend", "abacus"})));
  CHECK(test::IsRefusal(test::RunHere({"up", "--backend", "abacus"})));
  CHECK(test::IsRefusal(test::RunHere({"demo", "--out-dir", in_the_way})));
  CHECK(test::IsRefusal(test::RunHere({"demo", "--out-dir", in_the_way + "/below"})));
}

}  // namespace annulus
