// Seeded simulation of clusters that hold every page twice and lose a worker while callers do
// everything that a service does: answers are the oracle's, nothing that was acknowledged is lost,
// and no context is.
//
// ANNULUS_COPIES_SEEDS=N runs N seeds instead of the usual number, ANNULUS_COPIES_SEED=S only one.
#include <algorithm>

#include "base/log.h"
#include "tests/catch.h"
#include "tests/reliability.h"
#include "tests/runtime/sim_session.h"

namespace annulus {
namespace {

using test::SimCluster;
using test::SimSession;
using test::Tally;

constexpr absl::Duration kSessionsEnd = absl::Milliseconds(600);  // simulated
constexpr absl::Duration kCallsEnd = absl::Seconds(3);

// Instrumented programs take many times as long.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr uint64_t kSeeds = 60;
#else
constexpr uint64_t kSeeds = 1000;
#endif

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
  AttendPlanner planner{ClusterModel{}};
  StepPlanner steps;
  Tally tally;
  std::vector<std::unique_ptr<SimSession>> sessions;
  const absl::Time end = absl::UnixEpoch() + kSessionsEnd;
  for (int i = 0; i < 2; ++i) {
    sessions.push_back(
        std::make_unique<SimSession>(cluster, planner, steps, rng.Next(), end, tally));
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
  SetLogLevel(LogLevel::kOff);
  const uint64_t only = test::NumberFromEnvironment("ANNULUS_COPIES_SEED", 0);
  const uint64_t first = only != 0 ? only : 1;
  const uint64_t count =
      only != 0 ? 1 : test::NumberFromEnvironment("ANNULUS_COPIES_SEEDS", kSeeds);
  Tally all;
  int failed = 0;
  for (uint64_t seed = first; seed < first + count && failed < 10; ++seed) {
    std::vector<std::string> failures;
    const Tally tally = Simulate(seed, &failures);
    if (!failures.empty()) {
      ++failed;
      FAIL_CHECK("seed " << seed << " (ANNULUS_COPIES_SEED=" << seed
                         << " replays it): " << failures.front());
    }
    all.answers += tally.answers;
    all.degraded_answers += tally.degraded_answers;
    all.appends += tally.appends;
    all.errors += tally.errors;
  }
  WARN(count << " seeds: " << all.appends << " appends, " << all.answers << " right answers, "
             << all.degraded_answers << " of them after the loss, " << all.errors << " errors");
  if (count < 50) return;
  const auto seeds = static_cast<int64_t>(count);
  CHECK(all.answers >= seeds * 10);
  CHECK(all.degraded_answers >= seeds * 2);
}

}  // namespace
}  // namespace annulus
