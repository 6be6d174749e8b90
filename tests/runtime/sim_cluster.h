// A whole cluster in one thread under a simulated clock: the same nodes, core, store and engine as
// in a real one, polled after every event of the simulated network. Computing takes simulated time.
// Plans must be pass-q over at most four workers, which has no exchange between workers: that would
// block the one thread.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/backend.h"
#include "base/rng.h"
#include "comm/local/local_network.h"
#include "runtime/coordinator/coordinator_loop.h"
#include "runtime/worker/coordinator_link.h"
#include "runtime/worker/task_executor.h"
#include "runtime/worker/task_queue.h"

namespace annulus::test {

// A tenth and a fifth of a real cluster's, so that a short simulation sees many losses.
inline constexpr absl::Duration kSimHeartbeatPeriod = absl::Milliseconds(20);
inline constexpr absl::Duration kSimHeartbeatTimeout = absl::Milliseconds(200);

class SimWorker {
 public:
  SimWorker(LocalNetwork& network, const std::string& name, const std::string& coordinator,
            int64_t kv_bytes_limit, absl::Duration rejoin_timeout, uint64_t seed)
      : network_(network),
        rng_(seed),
        fabric_(network.MakeFabric(name).value()),
        address_(fabric_->messenger().address()),
        executor_(MakeBackend("reference", 1).value(), *fabric_, network.clock(),
                  {.kv_bytes_limit = kv_bytes_limit}),
        node_(fabric_->messenger(), Options(name, coordinator, kv_bytes_limit, rejoin_timeout),
              network.clock()) {}

  // One round of its threads, unless it stands still. Tasks that may run at once do: they take
  // effect and end in any order that their lanes allow.
  void Poll() {
    if (dead_ || paused_) return;
    node_.Handle();
    const absl::Time now = network_.clock().Now();
    while (std::optional<TaskQueue::Begun> begun = tasks_.Begin(now)) {
      const absl::Time run = now + absl::Microseconds(rng_.Between(0, 2000));
      const absl::Time end = run + absl::Microseconds(rng_.Between(10, 2000));
      for (const absl::Time time : {run, end}) network_.At(time, [] {});  // somebody polls then
      running_.push_back({*std::move(begun), run, end, {}});
    }
    for (Running& task : running_) {
      if (now < task.run || task.outcome.has_value()) continue;
      task.outcome = executor_.Run(std::move(task.begun.task));
    }
    std::erase_if(running_, [&](Running& task) {
      if (now < task.end || !task.outcome.has_value()) return false;
      node_.Finish(*std::move(task.outcome));
      tasks_.End(task.begun.id);
      return true;
    });
  }

  void Crash() {
    dead_ = true;
    network_.Crash(address_);
  }
  void Pause(bool paused) {
    if (dead_) return;
    paused_ = paused;
    paused ? network_.Pause(address_) : network_.Resume(address_);
  }

  // As its process does when it is told to end.
  void Leave() {
    leaves_ = true;
    node_.Leave();
  }

  bool leaves() const { return leaves_; }
  bool left() const { return node_.state() == CoordinatorLink::State::kLeft; }
  bool dead() const { return dead_; }
  bool lost() const { return node_.state() == CoordinatorLink::State::kLost; }
  // As far as it knows.
  bool ready() const { return !dead_ && node_.state() == CoordinatorLink::State::kReady; }
  const std::string& address() const { return address_; }
  const KvStore& store() const { return executor_.store(); }
  int64_t merges() const { return merges_; }  // partials that came from other workers

 private:
  CoordinatorLink::Options Options(const std::string& name, const std::string& coordinator,
                                   int64_t kv_bytes_limit, absl::Duration rejoin_timeout) {
    return {.coordinator_address = coordinator,
            .name = name,
            .backend = "reference",
            .kv_bytes_limit = kv_bytes_limit,
            .heartbeat_period = kSimHeartbeatPeriod,
            .heartbeat_timeout = kSimHeartbeatTimeout,
            .rejoin_timeout = rejoin_timeout,
            .kv_bytes = [this] { return executor_.store().kv_bytes(); },
            .owners = [this](size_t owners_max) { return executor_.TellOwners(owners_max); },
            .take =
                [this](WorkerTask& task, bool must) {
                  merges_ += std::holds_alternative<wire::Partials>(task.body);
                  return (must || tasks_.waiting() < 64) && tasks_.Add(task, must);
                }};
  }

  // A task that has begun takes effect at one time and ends at another.
  struct Running {
    TaskQueue::Begun begun;
    absl::Time run;
    absl::Time end;
    std::optional<TaskOutcome> outcome;
  };

  LocalNetwork& network_;
  Rng rng_;
  std::unique_ptr<Fabric> fabric_;
  const std::string address_;
  TaskExecutor executor_;
  TaskQueue tasks_;
  CoordinatorLink node_;
  std::vector<Running> running_;
  int64_t merges_ = 0;
  bool dead_ = false;
  bool leaves_ = false;
  bool paused_ = false;
};

class SimCluster {
 public:
  // Workers that lost their coordinator look for another one for `rejoin_timeout`.
  SimCluster(uint64_t seed, int workers, double drop, int64_t kv_bytes_limit,
             absl::Duration rejoin_timeout = absl::ZeroDuration(), CoordinatorLimits limits = {})
      : rng_(seed),
        limits_(limits),
        kv_bytes_limit_(kv_bytes_limit),
        rejoin_timeout_(rejoin_timeout),
        coordinator_may_be_lost_(rejoin_timeout > absl::ZeroDuration()),
        network_({.simulation = SimulationOptions{.seed = seed, .drop = drop}}),
        fabric_(network_.MakeFabric("coordinator").value()),
        address_(fabric_->messenger().address()) {
    StartNode();
    for (int i = 0; i < workers; ++i) AddWorker();
    Beat();
  }

  void AddWorker() {
    workers_.push_back(std::make_unique<SimWorker>(network_, absl::StrCat("w", ++last_worker_),
                                                   address_, kv_bytes_limit_, rejoin_timeout_,
                                                   rng_.Next()));
  }
  // What its process would do: one that lost its coordinator exits.
  void RemoveLost() {
    std::erase_if(workers_, [](const auto& worker) {
      return worker->dead() || worker->lost() || worker->left();
    });
  }
  void PauseCoordinator(bool paused) {
    coordinator_paused_ = paused;
    paused ? network_.Pause(address_) : network_.Resume(address_);
    if (!paused) coordinator_resumed_ = now();
  }
  // Its callers get UNAVAILABLE for what is in flight; what it knew is gone.
  void CrashCoordinator() {
    coordinator_is_up_ = false;
    network_.Crash(address_);
    coordinator_->GiveUpAll(absl::UnavailableError("the coordinator is gone"));
    coordinator_->Handle();
    coordinator_.reset();
    fabric_.reset();
  }
  void StartCoordinator() {
    fabric_ = network_.MakeFabric("coordinator").value();
    StartNode();
  }
  bool coordinator_is_up() const { return coordinator_is_up_; }
  // Whether what the coordinator knows may be gone: not if it only stands still.
  bool coordinator_may_be_lost() const { return coordinator_may_be_lost_; }
  void NeverLoseCoordinator() { coordinator_may_be_lost_ = false; }
  int coordinators() const { return coordinators_; }                       // so far
  absl::Time coordinator_resumed() const { return coordinator_resumed_; }  // last

  void Step() {
    network_.Step();
    PollCoordinator();
    for (auto& worker : workers_) worker->Poll();
    PollCoordinator();
  }

  absl::Time now() const { return network_.clock().Now(); }
  LocalNetwork& network() { return network_; }
  CoordinatorLoop& coordinator() { return *coordinator_; }
  const std::string& address() const { return address_; }
  std::vector<std::unique_ptr<SimWorker>>& workers() { return workers_; }
  CallId NextCall() { return ++last_call_; }

 private:
  void StartNode() {
    const auto number = static_cast<uint64_t>(++coordinators_) * 1'000'000;
    coordinator_ = std::make_unique<CoordinatorLoop>(fabric_->messenger(), limits_,
                                                     kSimHeartbeatTimeout, network_.clock(),
                                                     Incarnation{number, absl::Milliseconds(200)});
    coordinator_is_up_ = true;
  }
  void PollCoordinator() {
    if (coordinator_is_up_ && !coordinator_paused_) coordinator_->Handle();
  }
  // Heartbeats and timers are looked at every few ms, message or not.
  void Beat() {
    network_.At(now() + absl::Milliseconds(5), [this] { Beat(); });
  }

  Rng rng_;
  const CoordinatorLimits limits_;
  const int64_t kv_bytes_limit_;
  const absl::Duration rejoin_timeout_;
  bool coordinator_may_be_lost_;
  LocalNetwork network_;
  std::unique_ptr<Fabric> fabric_;
  const std::string address_;
  std::unique_ptr<CoordinatorLoop> coordinator_;  // null while there is none
  int coordinators_ = 0;
  std::vector<std::unique_ptr<SimWorker>> workers_;
  bool coordinator_is_up_ = false;
  bool coordinator_paused_ = false;
  absl::Time coordinator_resumed_ = absl::InfinitePast();
  int last_worker_ = 0;
  CallId last_call_ = 0;
};

}  // namespace annulus::test
