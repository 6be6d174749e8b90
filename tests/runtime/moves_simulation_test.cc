// Seeded simulation of clusters whose workers leave and join while callers do everything that a
// service does: answers are the oracle's, nothing that was acknowledged is lost, and whoever wants
// to leave can. Every other seed also loses its coordinator, or a worker, in the middle of it.
//
// ANNULUS_MOVES_SEEDS=N runs N seeds instead of the usual number, ANNULUS_MOVES_SEED=S only one.
#include <algorithm>
#include <cstdlib>

#include "base/log.h"
#include "tests/catch.h"
#include "tests/runtime/sim_session.h"

namespace annulus {
namespace {

using test::SimCluster;
using test::SimSession;
using test::Tally;

constexpr absl::Duration kSessionsEnd = absl::Milliseconds(800);  // simulated
constexpr absl::Duration kCallsEnd = absl::Seconds(5);
constexpr absl::Duration kRejoinTimeout = absl::Seconds(2);

// Instrumented programs take many times as long.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr uint64_t kSeeds = 60;
#else
constexpr uint64_t kSeeds = 600;
#endif

struct Outcome {
  Tally tally;
  int left = 0;
};

// Which workers come and go, and what else happens.
class Changes {
 public:
  Changes(SimCluster& cluster, uint64_t seed, bool faults)
      : cluster_(cluster), rng_(seed), faults_(faults) {}

  void Run() {
    if (cluster_.now() - absl::UnixEpoch() > kSessionsEnd) return;
    auto& workers = cluster_.workers();
    const auto staying = std::count_if(workers.begin(), workers.end(),
                                       [](const auto& worker) { return !worker->leaves(); });
    if (rng_.Below(2) == 0 && staying > 2) {
      test::SimWorker& worker = *workers[rng_.Below(workers.size())];
      if (!worker.leaves() && !worker.dead()) worker.Leave();
    } else if (staying < 5) {
      cluster_.AddWorker();
    }
    if (faults_ && rng_.Below(3) == 0) Hurt();
    cluster_.network().At(cluster_.now() + absl::Milliseconds(rng_.Between(30, 250)),
                          [this] { Run(); });
  }

 private:
  void Hurt() {
    const absl::Time then = cluster_.now() + absl::Milliseconds(rng_.Between(0, 20));
    if (rng_.Below(2) == 0 && cluster_.workers().size() > 2) {
      cluster_.network().At(then, [this] {
        auto& workers = cluster_.workers();
        if (!workers.empty()) workers[rng_.Below(workers.size())]->Crash();
      });
      return;
    }
    cluster_.network().At(then, [this] {
      if (!cluster_.coordinator_is_up()) return;
      cluster_.CrashCoordinator();
      cluster_.network().At(cluster_.now() + absl::Milliseconds(rng_.Between(1, 60)),
                            [this] { cluster_.StartCoordinator(); });
    });
  }

  SimCluster& cluster_;
  Rng rng_;
  const bool faults_;
};

Outcome Simulate(uint64_t seed, std::vector<std::string>* failures) {
  Rng rng(seed);
  const bool faults = seed % 2 == 0;
  SimCluster cluster(seed, static_cast<int>(rng.Between(2, 4)), /*drop=*/0, int64_t{1} << 30,
                     faults ? kRejoinTimeout : absl::ZeroDuration());
  AttendPlanner planner{ClusterModel{}};
  StepPlanner steps;
  Outcome outcome;
  Changes changes(cluster, rng.Next(), faults);
  std::vector<std::unique_ptr<SimSession>> sessions;
  const absl::Time end = absl::UnixEpoch() + kSessionsEnd;
  for (int i = 0; i < 2; ++i) {
    sessions.push_back(
        std::make_unique<SimSession>(cluster, planner, steps, rng.Next(), end, outcome.tally));
    SimSession& session = *sessions.back();
    cluster.network().At(cluster.now() + absl::Milliseconds(10), [&session] { session.Run(); });
  }
  cluster.network().At(cluster.now() + absl::Milliseconds(rng.Between(20, 200)),
                       [&changes] { changes.Run(); });
  const auto unfinished = [&] {
    return std::any_of(sessions.begin(), sessions.end(), [](auto& s) { return s->busy(); }) ||
           (!faults && std::any_of(cluster.workers().begin(), cluster.workers().end(),
                                   [](auto& w) { return w->leaves() && !w->left(); }));
  };
  const auto elapsed = [&cluster] { return cluster.now() - absl::UnixEpoch(); };
  while (elapsed() < kSessionsEnd || (unfinished() && elapsed() < kCallsEnd)) {
    cluster.Step();
    for (const auto& worker : cluster.workers()) outcome.left += worker->left();
    cluster.RemoveLost();
    if (faults && cluster.workers().empty()) cluster.AddWorker();
  }
  if (outcome.tally.lost > 0 && !faults) failures->push_back("a context was lost in a move");
  if (!faults && unfinished()) failures->push_back("a worker could not leave, or a call not end");
  for (const auto& session : sessions) {
    if (session->busy()) failures->push_back("a call never ended");
    failures->insert(failures->end(), session->failures().begin(), session->failures().end());
  }
  return outcome;
}

uint64_t NumberFromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

TEST_CASE("Simulated workers leave and join, and contexts move to where there is room") {
  SetLogLevel(LogLevel::kOff);
  const uint64_t only = NumberFromEnvironment("ANNULUS_MOVES_SEED", 0);
  const uint64_t first = only != 0 ? only : 1;
  const uint64_t count = only != 0 ? 1 : NumberFromEnvironment("ANNULUS_MOVES_SEEDS", kSeeds);
  Outcome all;
  int failed = 0;
  for (uint64_t seed = first; seed < first + count && failed < 10; ++seed) {
    std::vector<std::string> failures;
    const Outcome outcome = Simulate(seed, &failures);
    if (!failures.empty()) {
      ++failed;
      FAIL_CHECK("seed " << seed << " (ANNULUS_MOVES_SEED=" << seed
                         << " replays it): " << failures.front());
    }
    all.left += outcome.left;
    all.tally.answers += outcome.tally.answers;
    all.tally.appends += outcome.tally.appends;
    all.tally.errors += outcome.tally.errors;
    all.tally.lost += outcome.tally.lost;
  }
  WARN(count << " seeds: " << all.left << " workers left, " << all.tally.appends << " appends, "
             << all.tally.answers << " right answers, " << all.tally.errors << " errors, "
             << all.tally.lost << " contexts lost");
  if (count < 50) return;
  const auto seeds = static_cast<int64_t>(count);
  CHECK(all.left >= seeds / 2);
  CHECK(all.tally.answers >= seeds * 10);
}

}  // namespace
}  // namespace annulus
