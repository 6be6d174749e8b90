// Seeded simulation of clusters whose coordinator stands still for a while, or whose workers are
// cut off from it and join again, while callers do everything that a service does. Answers are the
// oracle's; whoever is cut off counts for nothing until it has joined again; and once all have, all
// that was acknowledged is there, on one owner each. A stand-still of the coordinator alone loses
// no context at any time.
//
// ANNULUS_PAUSE_SEEDS=N runs N seeds instead of the usual number, ANNULUS_PAUSE_SEED=S only one.
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

constexpr absl::Duration kSessionsLength = absl::Milliseconds(400);  // simulated, beside pauses
constexpr absl::Duration kCallsEnd = absl::Seconds(20);
constexpr absl::Duration kRejoinTimeout = absl::Seconds(30);
// A real coordinator's 0.5, 1.6, 5 and 30 s: heartbeats are a fifth of a real cluster's.
constexpr int kPausesMs[] = {100, 320, 1000, 6000};

constexpr test::SeedCounts kSeeds{.usual = 2000, .instrumented = 100};

// What happens in a simulation, by its seed.
struct Kind {
  explicit Kind(uint64_t seed)
      : coordinator(seed % 4 != 1), workers(seed % 4 != 0), crashes(seed % 4 == 3) {}

  bool coordinator;  // stands still
  bool workers;      // are cut off, or stand still
  bool crashes;      // of workers
};

class Faults {
 public:
  Faults(SimCluster& cluster, uint64_t seed, Kind kind)
      : cluster_(cluster), rng_(seed), kind_(kind) {}

  void Run() {
    if (--left_ < 0) return;
    absl::Duration length = absl::Milliseconds(rng_.Between(50, 600));
    if (kind_.coordinator && (!kind_.workers || rng_.Below(2) == 0)) {
      length = absl::Milliseconds(kPausesMs[rng_.Below(4)]);
      cluster_.PauseCoordinator(true);
      cluster_.network().At(cluster_.now() + length, [this] { cluster_.PauseCoordinator(false); });
    }
    if (kind_.workers) CutOff(cluster_.now() + length);
    const bool meanwhile = rng_.Below(4) == 0;
    const absl::Time next = cluster_.now() + (meanwhile ? absl::ZeroDuration() : length) +
                            absl::Milliseconds(rng_.Between(10, 300));
    end_ = std::max({end_, next, cluster_.now() + length});
    cluster_.network().At(next, [this] { Run(); });
  }

  absl::Time end() const { return end_; }

 private:
  void CutOff(absl::Time until) {
    SimWorker& worker = *cluster_.workers()[rng_.Below(cluster_.workers().size())];
    const std::string address = worker.address();
    const std::string coordinator = cluster_.address();
    LocalNetwork& network = cluster_.network();
    switch (rng_.Below(kind_.crashes ? 4 : 3)) {
      case 0:
        worker.Pause(true);
        return network.At(until, [&worker] { worker.Pause(false); });
      case 1:
        network.Clog(address, coordinator);
        return network.At(
            until, [&network, address, coordinator] { network.Unclog(address, coordinator); });
      case 2:
        network.Clog(coordinator, address);
        return network.At(
            until, [&network, address, coordinator] { network.Unclog(coordinator, address); });
      default:
        if (!worker.dead()) worker.Crash();
    }
  }

  SimCluster& cluster_;
  Rng rng_;
  const Kind kind_;
  int left_ = 3;
  absl::Time end_ = absl::UnixEpoch() + kSessionsLength;
};

// No worker that the coordinator counts on holds what another one does, and no more than its ranks.
bool OwnersAreUnique(SimCluster& cluster,
                     const std::vector<std::unique_ptr<SimSession>>& sessions) {
  for (const auto& session : sessions) {
    for (const ContextId id : session->ids()) {
      std::map<int, int> holders;  // by rank
      for (const auto& worker : cluster.workers()) {
        const auto shard = worker->store().Find(id);
        if (worker->ready() && shard.ok() && ++holders[(*shard)->rank] > (*shard)->spec.replicas) {
          return false;
        }
      }
    }
  }
  return true;
}

Tally Simulate(uint64_t seed, std::vector<std::string>* failures) {
  Rng rng(seed);
  const Kind kind(seed);
  SimCluster cluster(seed, static_cast<int>(rng.Between(1, 4)), /*drop=*/0, int64_t{1} << 30,
                     kRejoinTimeout);
  cluster.NeverLoseCoordinator();
  CallPlanner planner;
  Tally tally;
  Faults faults(cluster, rng.Next(), kind);
  std::vector<std::unique_ptr<SimSession>> sessions;
  for (int i = 0; i < 2; ++i) {
    sessions.push_back(std::make_unique<SimSession>(cluster, planner, rng.Next(),
                                                    absl::UnixEpoch() + kCallsEnd / 2, tally));
    SimSession& session = *sessions.back();
    if (kind.workers && !kind.crashes) session.WaitForLost();
    cluster.network().At(cluster.now() + absl::Milliseconds(10), [&session] { session.Run(); });
  }
  cluster.network().At(cluster.now() + absl::Milliseconds(rng.Between(20, 200)),
                       [&faults] { faults.Run(); });
  const auto busy = [&] {
    return std::any_of(sessions.begin(), sessions.end(), [](auto& s) { return s->busy(); });
  };
  // All have joined again by then, and answers go on for a while.
  const auto end = [&] { return faults.end() + kSessionsLength; };
  bool owners_unique = true;
  bool ended = false;
  const absl::Time calls_end = absl::UnixEpoch() + kCallsEnd;
  for (int64_t step = 0; cluster.now() < end() || (busy() && cluster.now() < calls_end); ++step) {
    if (cluster.now() >= end() && !std::exchange(ended, true)) {
      for (auto& session : sessions) session->End();
    }
    cluster.Step();
    if (step % 64 == 0) owners_unique &= OwnersAreUnique(cluster, sessions);
  }
  // What was done last is told with the next heartbeats.
  for (auto& session : sessions) session->End();
  const absl::Time told = cluster.now() + 2 * test::kSimHeartbeatPeriod;
  while (cluster.now() < told) cluster.Step();
  if (!owners_unique) failures->push_back("too many workers hold the same rank of a context");
  if (tally.lost > 0 && !kind.crashes) failures->push_back("a context was lost");
  for (const auto& session : sessions) {
    if (session->busy()) failures->push_back("a call never ended");
    if (!session->busy() && !kind.crashes) session->CheckAllThere();
    failures->insert(failures->end(), session->failures().begin(), session->failures().end());
  }
  return tally;
}

TEST_CASE("Stand-stills and cut-offs, simulated: all comes back") {
  const auto [count, failed, all] = test::RunSeeds("PAUSE", kSeeds, Simulate);
  WARN(count << " seeds: " << all.appends << " appends, " << all.answers << " right answers, "
             << all.errors << " errors, " << all.back << " contexts back after they were lost, "
             << all.lost << " lost with a worker that crashed");
  test::Tell({14, "simulated stand-stills of the coordinator, workers cut off and back",
              absl::StrCat(all.appends, " appends, ", all.answers, " answers checked"),
              "invariants hold, 10000 seeds", absl::StrCat(count - failed, " of ", count, " seeds"),
              failed == 0});
  if (count < 100) return;
  const auto seeds = static_cast<int64_t>(count);
  CHECK(all.answers >= seeds * 8);
  CHECK(all.back >= seeds / 20);
}

}  // namespace
}  // namespace annulus
