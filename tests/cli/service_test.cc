// The real program as real processes: a cluster comes up, computes, loses a worker and goes.
#include <signal.h>

#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "comm/ucx/ucx_signals.h"
#include "sharding/plan.h"
#include "tests/catch.h"
#include "tests/cli/program.h"

namespace annulus {
namespace {

using nlohmann::json;
using test::Outcome;
using test::Program;
using test::RunHere;
using test::Within;

bool IsGone(pid_t pid) {
  return kill(pid, 0) != 0;
}

// Those that the process has a handler for.
std::set<int> CaughtSignals(pid_t pid) {
  std::istringstream status(test::ReadBytes(absl::StrCat("/proc/", pid, "/status")));
  std::set<int> caught;
  for (std::string line; std::getline(status, line);) {
    if (!absl::StartsWith(line, "SigCgt:")) continue;
    const uint64_t bits = std::stoull(line.substr(7), nullptr, 16);
    for (int signal = 1; signal < 32; ++signal) {  // beyond are the C library's own
      if ((bits >> (signal - 1) & 1) != 0) caught.insert(signal);
    }
  }
  return caught;
}

json StatusOf(const std::string& endpoint) {
  const Outcome outcome = RunHere({"status", "--endpoint", endpoint, "--json"});
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  return json::parse(outcome.out);
}

int ReadyWorkers(const std::string& endpoint) {
  const json status = StatusOf(endpoint);
  int ready = 0;
  for (const json& worker : status["workers"]) ready += worker["state"] == "ready";
  return ready;
}

// q, k, v in a folder, and the arguments to attend them.
struct Files {
  Files() {
    Rng rng(10);
    for (const auto& [name, shape] : {std::pair("q", std::vector<int64_t>{90, 4, 16}),
                                      {"k", {400, 2, 16}},
                                      {"v", {400, 2, 8}}}) {
      test::WriteBytes(folder / absl::StrCat(name, ".npy"),
                       test::TestTensor::Random(rng, DType::kF32, shape).Npy());
    }
  }
  Arguments Args(const Arguments& more) const {
    Arguments args = {"attend",    "--json",
                      "--q",       folder / "q.npy",
                      "--k",       folder / "k.npy",
                      "--v",       folder / "v.npy",
                      "--out",     folder / "out.npy",
                      "--lse",     folder / "lse.npy",
                      "--pattern", "causal & (window(100) | sink(70))"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  std::vector<float> Out() const { return test::ReadF32(folder / "out.npy", {90, 4, 8}); }
  std::vector<float> Lse() const { return test::ReadF32(folder / "lse.npy", {90, 4}); }

  test::TempFolder folder;
};

double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max<double>(worst, std::abs(a[i] - b[i]));
  return worst;
}

TEST_CASE("up: every plan and placement answers as one process does, a loss is seen, all end") {
  const Files files;
  REQUIRE(RunHere(files.Args({"--backend", "reference"})).code == 0);
  const std::vector<float> out = files.Out();
  const std::vector<float> lse = files.Lse();

  Program up({"up", "--workers", "3", "--json", "--kv-bytes-limit", "64M"});
  const json ready = json::parse(up.ReadLine());
  const std::string endpoint = ready["endpoint"];
  const std::vector<pid_t> workers = ready["worker_pids"];
  REQUIRE(workers.size() == 3);
  const json before = StatusOf(endpoint);
  CHECK(before["contexts"] == 0);
  REQUIRE(before["workers"].size() == 3);
  for (const json& worker : before["workers"]) {
    CHECK(worker["state"] == "ready");
    CHECK(worker["kv_bytes"] == 0);
    CHECK(worker["kv_bytes_limit"] == 64 << 20);
    CHECK(absl::StartsWith(worker["backend"].get<std::string>(), "cpu"));
  }

  for (const std::string placement : {"tokens", "heads", "mesh"}) {
    for (const PlanKind plan : kPlanKinds) {
      for (const std::string partition : {"zigzag", "block-cyclic:2"}) {
        CAPTURE(placement, Name(plan), partition);
        const Outcome outcome =
            RunHere(files.Args({"--endpoint", endpoint, "--plan", std::string(Name(plan)),
                                "--kv-placement", placement, "--placement", partition}));
        INFO(outcome.err);
        REQUIRE(outcome.code == 0);
        CHECK(Distance(files.Out(), out) < 1e-5);
        CHECK(Distance(files.Lse(), lse) < 1e-5);
        const json report = json::parse(outcome.out);
        CHECK(report["plan"] == std::string(Name(plan)));
        CHECK(report["bytes_moved"] == report["planned_bytes"]);
        CHECK(report["workers"] == 3);
        CHECK(report["backend"] == "cpu");
      }
    }
  }
  const Outcome relayed = RunHere(files.Args({"--endpoint", endpoint, "--upload", "relay"}));
  INFO(relayed.err);
  CHECK(relayed.code == 0);
  CHECK(Distance(files.Out(), out) < 1e-5);
  CHECK(StatusOf(endpoint)["contexts"] == 0);  // each was released

  const Outcome refused = RunHere(files.Args({"--endpoint", endpoint, "--pattern", "causal"}));
  CHECK(test::IsRefusal(refused));  // --pattern twice

  REQUIRE(kill(workers[1], SIGKILL) == 0);
  CHECK(Within(absl::Seconds(5), [&] { return ReadyWorkers(endpoint) == 2; }));
  const Outcome after = RunHere(files.Args({"--endpoint", endpoint}));
  INFO(after.err);
  REQUIRE(after.code == 0);
  CHECK(Distance(files.Out(), out) < 1e-5);
  // It is started again, without what it held.
  CHECK(Within(absl::Seconds(20), [&] { return ReadyWorkers(endpoint) == 3; }));
  REQUIRE(RunHere(files.Args({"--endpoint", endpoint})).code == 0);
  CHECK(Distance(files.Out(), out) < 1e-5);

  up.Signal(SIGTERM);
  const Outcome ended = up.Wait();
  CHECK(ended.code == 0);
  CHECK(absl::StrContains(ended.err, "signal 9"));
  CHECK(absl::StrContains(ended.err, "started again"));
  CHECK(IsGone(ready["coordinator_pid"].get<pid_t>()));
  for (const pid_t pid : workers) CHECK(IsGone(pid));
  const Outcome gone = RunHere({"status", "--endpoint", endpoint});
  CHECK(gone.code == 1);
  CHECK(absl::StrContains(gone.err, endpoint));
}

TEST_CASE("up: killed, it takes its children along") {
  Program up({"up", "--workers", "1", "--json"});
  const json ready = json::parse(up.ReadLine());
  up.Signal(SIGKILL);
  CHECK(up.Wait().code == 128 + SIGKILL);
  CHECK(Within(absl::Seconds(10), [&] {
    return IsGone(ready["coordinator_pid"].get<pid_t>()) &&
           IsGone(ready["worker_pids"][0].get<pid_t>());
  }));
}

TEST_CASE("up: without its coordinator it ends and says so") {
  Program up({"up", "--workers", "1", "--json"});
  const json ready = json::parse(up.ReadLine());
  REQUIRE(kill(ready["coordinator_pid"].get<pid_t>(), SIGKILL) == 0);
  const Outcome ended = up.Wait();
  CHECK(ended.code == 1);
  CHECK(absl::StrContains(ended.err, "the coordinator ended with signal 9"));
  CHECK(IsGone(ready["worker_pids"][0].get<pid_t>()));
}

TEST_CASE("a terminal that is closed ends a program that has only begun") {
  for (int ms = 0; ms < 40; ms += 2) {
    CAPTURE(ms);
    Program worker({"worker", "--coordinator", "127.0.0.1:1", "--log-level", "off"});
    absl::SleepFor(absl::Milliseconds(ms));
    worker.Signal(SIGHUP);
    const int code = worker.Wait().code;
    CHECK((code == 0 || code == 128 + SIGHUP));
  }
}

TEST_CASE("a terminal that is closed ends every program, unless it is ignored") {
  Program up({"up", "--workers", "1", "--json"});
  const json ready = json::parse(up.ReadLine());
  for (const pid_t pid :
       {up.pid(), ready["coordinator_pid"].get<pid_t>(), ready["worker_pids"][0].get<pid_t>()}) {
    std::set<int> caught = CaughtSignals(pid);  // those that are waited for are blocked
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    for (const int own : {SIGBUS, SIGFPE, SIGSEGV}) caught.erase(own);  // the sanitizer's
#endif
    CHECK(caught == std::set<int>{});
  }
  up.Signal(SIGHUP);
  CHECK(up.Wait().code == 0);
  CHECK(IsGone(ready["coordinator_pid"].get<pid_t>()));

  GiveBackSignals();  // else UCX keeps it
  signal(SIGHUP, SIG_IGN);
  Program nohup({"up", "--workers", "1", "--json"});
  signal(SIGHUP, SIG_DFL);
  const std::string endpoint = json::parse(nohup.ReadLine())["endpoint"];
  nohup.Signal(SIGHUP);
  absl::SleepFor(absl::Milliseconds(300));
  CHECK(ReadyWorkers(endpoint) == 1);
  nohup.Signal(SIGTERM);
  CHECK(nohup.Wait().code == 0);
}

TEST_CASE("up: what cannot start ends with one error") {
  const Outcome backend = test::RunProgram({"up", "--workers", "2", "--backend", "abacus"});
  CHECK(backend.code != 0);
  CHECK(absl::StrContains(backend.err, "abacus"));
  const Outcome listen = test::RunProgram({"up", "--listen", "192.0.2.1:1", "--insecure"});
  CHECK(listen.code == 1);
  CHECK(absl::StrContains(listen.err, "192.0.2.1:1"));
  CHECK(test::IsRefusal(test::RunProgram({"up", "--workers", "0"})));
}

TEST_CASE("coordinator and worker: started apart, in any order, with metrics, both end cleanly") {
  Program coordinator({"coordinator", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"});
  const std::string line = coordinator.ReadLine();
  REQUIRE(absl::StartsWith(line, "ready 127.0.0.1:"));
  const std::string endpoint = line.substr(6);
  Program worker({"worker", "--coordinator", endpoint, "--name", "only", "--threads", "1"});
  REQUIRE(Within(absl::Seconds(10), [&] { return ReadyWorkers(endpoint) == 1; }));
  worker.Signal(SIGTERM);
  CHECK(worker.Wait().code == 0);
  CHECK(Within(absl::Seconds(5), [&] { return ReadyWorkers(endpoint) == 0; }));
  CHECK(StatusOf(endpoint)["workers"][0]["state"] == "left");
  CHECK(absl::StrContains(coordinator.err(), "worker left"));
  CHECK(!absl::StrContains(coordinator.err(), "lost"));
  CHECK(!absl::StrContains(worker.err(), "ucx:"));

  Program second({"worker", "--coordinator", endpoint, "--rejoin-s", "1"});
  REQUIRE(Within(absl::Seconds(10), [&] { return ReadyWorkers(endpoint) == 1; }));
  coordinator.Signal(SIGINT);
  CHECK(coordinator.Wait().code == 0);
  const Outcome orphan = second.Wait();
  CHECK(orphan.code == 1);
  CHECK(absl::StrContains(orphan.err, endpoint));

  // Nobody listens there any more: a worker waits for a coordinator, but not for a signal.
  Program waiting({"worker", "--coordinator", endpoint});
  REQUIRE(Within(absl::Seconds(20),
                 [&] { return absl::StrContains(waiting.err(), "waiting for the coordinator"); }));
  waiting.Signal(SIGTERM);
  CHECK(waiting.Wait().code == 0);
}

}  // namespace
}  // namespace annulus
