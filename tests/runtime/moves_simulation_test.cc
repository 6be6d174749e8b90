// Seeded simulation of clusters whose workers leave and join while callers do everything that a
// service does: answers are the oracle's, nothing that was acknowledged is lost, and whoever wants
// to leave can. Every other seed also loses its coordinator, or a worker, in the middle of it.
//
// ANNULUS_MOVES_SEEDS=N runs N seeds instead of the usual number, ANNULUS_MOVES_SEED=S only one.
#include <algorithm>

#include "tests/catch.h"
#include "tests/runtime/seeds.h"
#include "tests/runtime/sim_session.h"

namespace annulus {
namespace {

using test::SimCluster;
using test::SimSession;
using test::Tally;

constexpr absl::Duration kSessionsEnd = absl::Milliseconds(800);  // simulated
constexpr absl::Duration kCallsEnd = absl::Seconds(5);
constexpr absl::Duration kRejoinTimeout = absl::Seconds(2);

constexpr test::SeedCounts kSeeds{.usual = 600, .instrumented = 60};

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

Tally Simulate(uint64_t seed, std::vector<std::string>* failures) {
  Rng rng(seed);
  const bool faults = seed % 2 == 0;
  SimCluster cluster(seed, static_cast<int>(rng.Between(2, 4)), /*drop=*/0, int64_t{1} << 30,
                     faults ? kRejoinTimeout : absl::ZeroDuration());
  CallPlanner planner;
  Tally tally;
  Changes changes(cluster, rng.Next(), faults);
  std::vector<std::unique_ptr<SimSession>> sessions;
  const absl::Time end = absl::UnixEpoch() + kSessionsEnd;
  for (int i = 0; i < 2; ++i) {
    sessions.push_back(std::make_unique<SimSession>(cluster, planner, rng.Next(), end, tally));
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
    for (const auto& worker : cluster.workers()) tally.left += worker->left();
    cluster.RemoveLost();
    if (faults && cluster.workers().empty()) cluster.AddWorker();
  }
  if (tally.lost > 0 && !faults) failures->push_back("a context was lost in a move");
  if (!faults && unfinished()) failures->push_back("a worker could not leave, or a call not end");
  for (const auto& session : sessions) {
    if (session->busy()) failures->push_back("a call never ended");
    failures->insert(failures->end(), session->failures().begin(), session->failures().end());
  }
  return tally;
}

TEST_CASE("Simulated workers leave and join, and contexts move to where there is room") {
  const auto [count, failed, all] = test::RunSeeds("MOVES", kSeeds, Simulate);
  WARN(count << " seeds: " << all.left << " workers left, " << all.appends << " appends, "
             << all.answers << " right answers, " << all.errors << " errors, " << all.lost
             << " contexts lost");
  if (count < 50) return;
  const auto seeds = static_cast<int64_t>(count);
  CHECK(all.left >= seeds / 2);
  CHECK(all.answers >= seeds * 10);
}

}  // namespace
}  // namespace annulus
