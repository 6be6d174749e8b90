// Seeded simulation of whole clusters with delay, reordering, repetitions, lost links, black holes,
// crashes and pauses. Whatever happens: an answer is the oracle's or an error; what was
// acknowledged is there, and once; what failed left nothing behind; nobody holds what another
// holds; every call ends.
//
// ANNULUS_SIM_SEEDS=N runs N seeds instead of the usual number, ANNULUS_SIM_SEED=S only that one.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "tests/catch.h"
#include "tests/reliability.h"
#include "tests/runtime/seeds.h"
#include "tests/runtime/sim_session.h"

namespace annulus {
namespace {

using test::SimCluster;
using test::SimSession;
using test::Tally;

constexpr absl::Duration kSessionsEnd = absl::Milliseconds(400);  // simulated
constexpr absl::Duration kCallsEnd = absl::Seconds(3);

constexpr test::SeedCounts kSeeds{.usual = 10000, .instrumented = 400};
constexpr test::SeedCounts kMergeSeeds{.usual = 2000, .instrumented = 100};

// Crashes, pauses, black holes; and new workers for those that are gone.
class Faults {
 public:
  // `among_workers`: black holes between two workers too.
  Faults(SimCluster& cluster, uint64_t seed, int workers, bool among_workers)
      : cluster_(cluster), rng_(seed), workers_wanted_(workers), among_workers_(among_workers) {}

  void Run() {
    auto& workers = cluster_.workers();
    if (cluster_.now() - absl::UnixEpoch() > kSessionsEnd) return;
    const absl::Duration length = absl::Milliseconds(rng_.Between(10, 500));
    const absl::Time end = cluster_.now() + length;
    if (!workers.empty()) {
      const std::string address = workers[rng_.Below(workers.size())]->address();
      switch (rng_.Below(among_workers_ ? 6 : 5)) {
        case 0:
          WithWorker(address, [](test::SimWorker& worker) { worker.Crash(); });
          break;
        case 1:
          WithWorker(address, [](test::SimWorker& worker) { worker.Pause(true); });
          cluster_.network().At(end, [this, address] {
            WithWorker(address, [](test::SimWorker& worker) { worker.Pause(false); });
          });
          break;
        case 2:
          Clog(address, cluster_.address(), end);
          break;
        case 3:
          Clog(cluster_.address(), address, end);
          break;
        case 5:
          Clog(address, workers[rng_.Below(workers.size())]->address(), end);
          break;
        default:
          cluster_.PauseCoordinator(true);
          cluster_.network().At(end, [this] { cluster_.PauseCoordinator(false); });
          next_ = end;
          break;
      }
    }
    next_ = std::max(next_, cluster_.now()) + absl::Milliseconds(rng_.Between(20, 300));
    cluster_.network().At(next_, [this] { Run(); });
  }

  void Replace() {
    cluster_.RemoveLost();
    if (static_cast<int>(cluster_.workers().size()) < workers_wanted_ && rng_.Below(100) == 0) {
      cluster_.AddWorker();
    }
  }

 private:
  template <typename Fn>
  void WithWorker(const std::string& address, Fn fn) {
    for (auto& worker : cluster_.workers()) {
      if (worker->address() == address) fn(*worker);
    }
  }
  void Clog(const std::string& from, const std::string& to, absl::Time until) {
    cluster_.network().Clog(from, to);
    cluster_.network().At(until, [this, from, to] { cluster_.network().Unclog(from, to); });
  }

  SimCluster& cluster_;
  Rng rng_;
  const int workers_wanted_;
  const bool among_workers_;
  absl::Time next_ = absl::InfinitePast();
};

// No rank of a context has more holders than copies, among all that are alive, fenced or not.
bool OwnersAreUnique(SimCluster& cluster,
                     const std::vector<std::unique_ptr<SimSession>>& sessions) {
  for (const auto& session : sessions) {
    for (const ContextId id : session->ids()) {
      std::map<int, int> holders;  // by rank
      for (const auto& worker : cluster.workers()) {
        const auto shard = worker->store().Find(id);
        if (shard.ok() && ++holders[(*shard)->rank] > (*shard)->spec.replicas) return false;
      }
    }
  }
  return true;
}

// After all leases have passed.
bool NothingIsLeft(SimCluster& cluster) {
  return cluster.coordinator().core().Status(cluster.now()).contexts.empty() &&
         std::none_of(cluster.workers().begin(), cluster.workers().end(), [](const auto& worker) {
           return worker->ready() && worker->store().kv_bytes() > 0;
         });
}

// `many`: so many workers that they merge the partials of steps among themselves.
Tally SimulateWith(bool many, uint64_t seed, std::vector<std::string>* failures) {
  Rng rng(seed);
  const auto workers = static_cast<int>(many ? rng.Between(5, 9) : rng.Between(1, 4));
  const double drop = rng.Below(3) == 0 ? 0.002 : 0;
  // Sometimes too little for everybody.
  const int64_t kv_bytes_limit = rng.Below(3) == 0 ? 24 << 10 : 1 << 30;
  // Sometimes contexts end when nobody uses them, or for others that need the room.
  const double lease = rng.Below(3) == 0 ? 0.02 * static_cast<double>(rng.Between(1, 10)) : 0;
  SimCluster cluster(seed, workers, drop, kv_bytes_limit, absl::ZeroDuration(),
                     {.evict = lease > 0});
  CallPlanner planner;
  Tally tally;
  Faults faults(cluster, rng.Next(), workers, many);
  std::vector<std::unique_ptr<SimSession>> sessions;
  const absl::Time end = absl::UnixEpoch() + kSessionsEnd;
  for (int i = 0; i < (many ? 4 : 2); ++i) {
    sessions.push_back(std::make_unique<SimSession>(cluster, planner, rng.Next(), end, tally));
    SimSession& session = *sessions.back();
    session.LeaseFor(lease);
    if (many) session.StepOverManyRanks();
    cluster.network().At(cluster.now() + absl::Milliseconds(10), [&session] { session.Run(); });
  }
  cluster.network().At(cluster.now() + absl::Milliseconds(rng.Between(20, 200)),
                       [&faults] { faults.Run(); });
  bool owners_unique = true;
  const auto unfinished = [&] {
    return std::any_of(sessions.begin(), sessions.end(), [](auto& s) { return s->busy(); });
  };
  const auto elapsed = [&cluster] { return cluster.now() - absl::UnixEpoch(); };
  for (int64_t step = 0; elapsed() < kSessionsEnd || (unfinished() && elapsed() < kCallsEnd);
       ++step) {
    cluster.Step();
    faults.Replace();
    if (step % 64 == 0) owners_unique &= OwnersAreUnique(cluster, sessions);
  }
  if (lease > 0) {
    const absl::Time gone =
        std::max(cluster.now(), absl::UnixEpoch() + absl::Seconds(1)) + absl::Seconds(lease + 1);
    while (cluster.now() < gone) {
      cluster.Step();
      faults.Replace();
    }
    if (!NothingIsLeft(cluster)) failures->push_back("contexts outlive their leases");
  }
  if (!owners_unique) failures->push_back("too many workers hold the same rank of a context");
  for (const auto& session : sessions) {
    if (session->busy()) failures->push_back("a call never ended");
    failures->insert(failures->end(), session->failures().begin(), session->failures().end());
  }
  for (const auto& worker : cluster.workers()) tally.merges += worker->merges();
  return tally;
}

Tally Simulate(uint64_t seed, std::vector<std::string>* failures) {
  return SimulateWith(false, seed, failures);
}

TEST_CASE("Simulated clusters answer right or not at all") {
  const auto [count, failed, all] = test::RunSeeds("SIM", kSeeds, Simulate);
  WARN(count << " seeds: " << all.creates << " contexts, " << all.forks << " forks, " << all.appends
             << " appends, " << all.truncates << " truncations, " << all.repetitions
             << " repetitions, " << all.ended << " unused contexts ended, " << all.answers
             << " right answers, " << all.errors << " errors");
  test::Tell({14, "simulated clusters: crash, pause, reorder, duplicate, drop, clog",
              absl::StrCat(all.appends, " appends, ", all.answers, " answers checked"),
              "invariants hold, 10000 seeds", absl::StrCat(count - failed, " of ", count, " seeds"),
              failed == 0});
  if (count < 100) return;
  const auto seeds = static_cast<int64_t>(count);
  CHECK(all.answers >= seeds * 8);
  CHECK(all.errors >= seeds);
  CHECK(all.forks >= seeds / 2);
  CHECK(all.ended >= seeds / 20);
  CHECK(all.truncates >= seeds / 2);
  CHECK(all.repetitions >= seeds * 2);
}

TEST_CASE("Simulated clusters that merge steps among workers answer right or not at all") {
  const auto simulate = [](uint64_t seed, std::vector<std::string>* failures) {
    return SimulateWith(true, seed, failures);
  };
  const auto [count, failed, all] = test::RunSeeds("MERGE", kMergeSeeds, simulate);
  WARN(count << " seeds: " << all.appends << " appends, " << all.answers << " right answers, "
             << all.merges << " partials between workers, " << all.errors << " errors");
  CHECK(failed == 0);
  if (count < 100) return;
  const auto seeds = static_cast<int64_t>(count);
  CHECK(all.answers >= seeds * 8);
  CHECK(all.merges >= seeds * 4);
  CHECK(all.errors >= seeds);
}

TEST_CASE("A simulation replays from its seed") {
  SetLogLevel(LogLevel::kOff);
  std::vector<std::string> failures;
  CHECK(Simulate(12, &failures).trace == Simulate(12, &failures).trace);
  CHECK(Simulate(12, &failures).trace != Simulate(13, &failures).trace);
}

}  // namespace
}  // namespace annulus
