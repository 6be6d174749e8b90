// A whole cluster in one thread under a simulated clock: the same nodes, core, store and engine as
// in a real one, polled after every event of the simulated network. Computing takes simulated time.
// Plans must be pass-q over at most four workers, which has no exchange between workers: that would
// block the one thread.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/backend.h"
#include "base/rng.h"
#include "comm/local/local_network.h"
#include "runtime/coordinator/node.h"
#include "runtime/worker/node.h"
#include "runtime/worker/task_runner.h"

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
        runner_(MakeBackend("reference", 1).value(), *fabric_, network.clock(),
                {.kv_bytes_limit = kv_bytes_limit}),
        node_(fabric_->messenger(), Options(name, coordinator, kv_bytes_limit, rejoin_timeout),
              network.clock()) {}

  // One round of both of its threads, unless it stands still.
  void Poll() {
    if (dead_ || paused_) return;
    node_.Handle();
    if (tasks_.empty() || network_.clock().Now() < busy_until_) return;
    WorkerTask task = std::move(tasks_.front());
    tasks_.pop_front();
    busy_until_ = network_.clock().Now() + absl::Microseconds(rng_.Between(10, 4000));
    network_.At(busy_until_, [] {});  // so that somebody polls then
    node_.Finish(runner_.Run(std::move(task)));
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
  bool left() const { return node_.state() == WorkerNode::State::kLeft; }
  bool dead() const { return dead_; }
  bool lost() const { return node_.state() == WorkerNode::State::kLost; }
  // As far as it knows.
  bool ready() const { return !dead_ && node_.state() == WorkerNode::State::kReady; }
  const std::string& address() const { return address_; }
  const KvStore& store() const { return runner_.store(); }

 private:
  WorkerNode::Options Options(const std::string& name, const std::string& coordinator,
                              int64_t kv_bytes_limit, absl::Duration rejoin_timeout) {
    return {.coordinator_address = coordinator,
            .name = name,
            .backend = "reference",
            .kv_bytes_limit = kv_bytes_limit,
            .heartbeat_period = kSimHeartbeatPeriod,
            .heartbeat_timeout = kSimHeartbeatTimeout,
            .rejoin_timeout = rejoin_timeout,
            .kv_bytes = [this] { return runner_.store().kv_bytes(); },
            .take =
                [this](WorkerTask& task, bool must) {
                  if (!must && tasks_.size() >= 64) return false;
                  tasks_.push_back(std::move(task));
                  return true;
                }};
  }

  LocalNetwork& network_;
  Rng rng_;
  std::unique_ptr<Fabric> fabric_;
  const std::string address_;
  TaskRunner runner_;
  WorkerNode node_;
  std::deque<WorkerTask> tasks_;
  absl::Time busy_until_ = absl::InfinitePast();
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
  CoordinatorNode& coordinator() { return *coordinator_; }
  const std::string& address() const { return address_; }
  std::vector<std::unique_ptr<SimWorker>>& workers() { return workers_; }
  CallId NextCall() { return ++last_call_; }

 private:
  void StartNode() {
    const auto number = static_cast<uint64_t>(++coordinators_) * 1'000'000;
    coordinator_ = std::make_unique<CoordinatorNode>(fabric_->messenger(), limits_,
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
  std::unique_ptr<CoordinatorNode> coordinator_;  // null while there is none
  int coordinators_ = 0;
  std::vector<std::unique_ptr<SimWorker>> workers_;
  bool coordinator_is_up_ = false;
  bool coordinator_paused_ = false;
  absl::Time coordinator_resumed_ = absl::InfinitePast();
  int last_worker_ = 0;
  CallId last_call_ = 0;
};

}  // namespace annulus::test
