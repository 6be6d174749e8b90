// Seeded simulation of clusters whose coordinator is lost and followed by another one, again and
// again, while callers do everything that a service does. What was acknowledged is there
// afterwards, and once; what was in flight was done wholly or not at all; answers are the oracle's.
// As long as no worker is lost too, no context is lost.
//
// ANNULUS_RESTART_SEEDS=N runs N seeds instead of the usual number, ANNULUS_RESTART_SEED=S only
// one.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tests/catch.h"
#include "tests/reliability.h"
#include "tests/runtime/seeds.h"
#include "tests/runtime/sim_session.h"

namespace annulus {
namespace {

using test::SimCluster;
using test::SimSession;
using test::SimWorker;
using test::Tally;

constexpr absl::Duration kSessionsEnd = absl::Milliseconds(600);  // simulated
constexpr absl::Duration kCallsEnd = absl::Seconds(5);
constexpr absl::Duration kRejoinTimeout = absl::Seconds(2);

constexpr test::SeedCounts kSeeds{.usual = 1000, .instrumented = 60};

class Restarts {
 public:
  Restarts(SimCluster& cluster, uint64_t seed, bool workers_too)
      : cluster_(cluster), rng_(seed), workers_too_(workers_too) {}

  void Run() {
    if (cluster_.now() - absl::UnixEpoch() > kSessionsEnd) return;
    cluster_.CrashCoordinator();
    const absl::Time up = cluster_.now() + absl::Milliseconds(rng_.Between(1, 60));
    cluster_.network().At(up, [this] { cluster_.StartCoordinator(); });
    if (workers_too_ && !cluster_.workers().empty() && rng_.Below(2) == 0) Hurt(up);
    // Sometimes before everybody has found the last one.
    const absl::Time next = up + absl::Milliseconds(rng_.Between(2, 250));
    cluster_.network().At(next, [this] { Run(); });
  }

 private:
  void Hurt(absl::Time around) {
    auto& workers = cluster_.workers();
    const std::string address = workers[rng_.Below(workers.size())]->address();
    const bool crash = rng_.Below(2) == 0;
    const absl::Time begin = around + absl::Milliseconds(rng_.Between(0, 30));
    const auto with_worker = [this, address](void (*fn)(SimWorker&)) {
      for (auto& worker : cluster_.workers()) {
        if (worker->address() == address) fn(*worker);
      }
    };
    cluster_.network().At(begin, [with_worker, crash] {
      crash ? with_worker([](SimWorker& worker) { worker.Crash(); })
            : with_worker([](SimWorker& worker) { worker.Pause(true); });
    });
    if (crash) return;
    cluster_.network().At(begin + absl::Milliseconds(rng_.Between(10, 500)), [with_worker] {
      with_worker([](SimWorker& worker) { worker.Pause(false); });
    });
  }

  SimCluster& cluster_;
  Rng rng_;
  const bool workers_too_;
};

Tally Simulate(uint64_t seed, std::vector<std::string>* failures) {
  Rng rng(seed);
  const int workers = static_cast<int>(rng.Between(1, 4));
  const bool workers_too = seed % 2 == 0;
  SimCluster cluster(seed, workers, /*drop=*/0, int64_t{1} << 30, kRejoinTimeout);
  CallPlanner planner;
  Tally tally;
  Restarts restarts(cluster, rng.Next(), workers_too);
  std::vector<std::unique_ptr<SimSession>> sessions;
  const absl::Time end = absl::UnixEpoch() + kSessionsEnd;
  for (int i = 0; i < 2; ++i) {
    sessions.push_back(std::make_unique<SimSession>(cluster, planner, rng.Next(), end, tally));
    SimSession& session = *sessions.back();
    cluster.network().At(cluster.now() + absl::Milliseconds(10), [&session] { session.Run(); });
  }
  cluster.network().At(cluster.now() + absl::Milliseconds(rng.Between(20, 200)),
                       [&restarts] { restarts.Run(); });
  const auto unfinished = [&] {
    return std::any_of(sessions.begin(), sessions.end(), [](auto& s) { return s->busy(); });
  };
  const auto elapsed = [&cluster] { return cluster.now() - absl::UnixEpoch(); };
  while (elapsed() < kSessionsEnd || (unfinished() && elapsed() < kCallsEnd)) {
    cluster.Step();
    cluster.RemoveLost();
    if (workers_too && cluster.workers().empty()) cluster.AddWorker();
  }
  if (tally.lost > 0 && !workers_too) failures->push_back("a context was lost with no worker lost");
  for (const auto& session : sessions) {
    if (session->busy()) failures->push_back("a call never ended");
    failures->insert(failures->end(), session->failures().begin(), session->failures().end());
  }
  return tally;
}

TEST_CASE("Simulated coordinators are lost and followed: what was acknowledged is there") {
  const auto [count, failed, all] = test::RunSeeds("RESTART", kSeeds, Simulate);
  WARN(count << " seeds: " << all.recovered << " contexts recovered, " << all.lost << " lost, "
             << all.appends << " appends, " << all.answers << " right answers, " << all.errors
             << " errors");
  test::Tell({6, "the coordinator dies during appends, some ranks with them (simulated)",
              absl::StrCat(all.appends, " appends"), "acknowledged prefix intact in every seed",
              absl::StrCat(count - failed, " of ", count, " seeds, ", all.recovered,
                           " contexts recovered"),
              failed == 0});
  if (count < 50) return;
  const auto seeds = static_cast<int64_t>(count);
  CHECK(all.recovered >= seeds * 2);
  CHECK(all.answers >= seeds * 8);
}

}  // namespace
}  // namespace annulus
