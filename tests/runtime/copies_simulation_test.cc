// Seeded simulation of clusters that hold every page twice and lose a worker while callers do
// everything that a service does: answers are the oracle's, nothing that was acknowledged is lost,
// and no context is.
//
// ANNULUS_COPIES_SEEDS=N runs N seeds instead of the usual number, ANNULUS_COPIES_SEED=S only one.
#include <algorithm>

#include "tests/catch.h"
#include "tests/runtime/seeds.h"
#include "tests/runtime/sim_session.h"

namespace annulus {
namespace {

using test::SimCluster;
using test::SimSession;
using test::Tally;

constexpr absl::Duration kSessionsEnd = absl::Milliseconds(600);  // simulated
constexpr absl::Duration kCallsEnd = absl::Seconds(3);

constexpr test::SeedCounts kSeeds{.usual = 1000, .instrumented = 60};

void Hurt(SimCluster& cluster, Rng& rng) {
  test::SimWorker& worker = *cluster.workers()[rng.Below(cluster.workers().size())];
  const std::string address = worker.address();
  switch (rng.Below(3)) {
    case 0:
      return worker.Crash();
    case 1:
      return worker.Pause(true);
    default:
      cluster.network().Clog(address, cluster.address());
  }
}

Tally Simulate(uint64_t seed, std::vector<std::string>* failures) {
  Rng rng(seed);
  SimCluster cluster(seed, static_cast<int>(rng.Between(2, 5)), /*drop=*/0, int64_t{1} << 30);
  CallPlanner planner;
  Tally tally;
  std::vector<std::unique_ptr<SimSession>> sessions;
  const absl::Time end = absl::UnixEpoch() + kSessionsEnd;
  for (int i = 0; i < 2; ++i) {
    sessions.push_back(std::make_unique<SimSession>(cluster, planner, rng.Next(), end, tally));
    SimSession& session = *sessions.back();
    session.AlwaysTwoCopies();
    cluster.network().At(cluster.now() + absl::Milliseconds(10), [&session] { session.Run(); });
  }
  cluster.network().At(cluster.now() + absl::Milliseconds(rng.Between(20, 300)),
                       [&] { Hurt(cluster, rng); });
  const auto unfinished = [&] {
    return std::any_of(sessions.begin(), sessions.end(), [](auto& s) { return s->busy(); });
  };
  const auto elapsed = [&cluster] { return cluster.now() - absl::UnixEpoch(); };
  while (elapsed() < kSessionsEnd || (unfinished() && elapsed() < kCallsEnd)) cluster.Step();
  if (tally.lost > 0) failures->push_back("a context was lost with one worker");
  for (const auto& session : sessions) {
    if (session->busy()) failures->push_back("a call never ended");
    failures->insert(failures->end(), session->failures().begin(), session->failures().end());
  }
  return tally;
}

TEST_CASE("Simulated clusters that hold all twice lose a worker and nothing else") {
  const auto [count, failed, all] = test::RunSeeds("COPIES", kSeeds, Simulate);
  WARN(count << " seeds: " << all.appends << " appends, " << all.answers << " right answers, "
             << all.degraded_answers << " of them after the loss, " << all.errors << " errors");
  if (count < 50) return;
  const auto seeds = static_cast<int64_t>(count);
  CHECK(all.answers >= seeds * 10);
  CHECK(all.degraded_answers >= seeds * 2);
}

}  // namespace
}  // namespace annulus
