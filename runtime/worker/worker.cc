#include "runtime/worker/worker.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/backend.h"
#include "base/bounded_queue.h"
#include "base/status.h"
#include "runtime/worker/node.h"
#include "runtime/worker/task_runner.h"

namespace annulus {
namespace {

constexpr size_t kTasksMax = 4096;
// Places that only tasks which tidy up may take, so that a flood of work cannot keep them out.
constexpr size_t kTasksHeadroom = kTasksMax / 2;
constexpr absl::Duration kPollMax = absl::Milliseconds(50);

std::string NameOf(const BackendCapabilities& capabilities) {
  if (capabilities.detail.empty()) return capabilities.name;
  return absl::StrCat(capabilities.name, " (", capabilities.detail, ")");
}

}  // namespace

class Worker::Impl {
 public:
  Impl(WorkerOptions options, std::unique_ptr<Backend> backend)
      : options_(std::move(options)),
        messenger_(options_.fabric->messenger()),
        backend_name_(NameOf(backend->capabilities())),
        runner_(std::move(backend), *options_.fabric, options_.kv_bytes_limit, *options_.clock),
        node_(messenger_, NodeOptions(), *options_.clock),
        engine_thread_([this] { RunTasks(); }),
        comm_thread_([this] { Communicate(); }) {
    if (options_.grants == nullptr) return;
    options_.grants->SetTake(
        [this](WorkerTask& task) { return tasks_.TryPush(task, kTasksHeadroom); });
  }

  ~Impl() {
    if (options_.grants != nullptr) options_.grants->SetTake({});
    stopping_.store(true);
    messenger_.Wake();
    // The engine first: its exchanges move only while the communication thread polls.
    tasks_.Close();
    engine_thread_.join();
    engine_done_.store(true);
    messenger_.Wake();
    comm_thread_.join();
  }

  absl::Status WaitUntilJoined(absl::Time deadline);
  WorkerNode::State state() const { return state_.load(); }
  void SetCoordinatorAddress(const std::string& address);
  WorkerSnapshot Snapshot() const;

 private:
  WorkerNode::Options NodeOptions() {
    return {.coordinator_address = options_.coordinator_address,
            .name = options_.name,
            .backend = backend_name_,
            .kv_bytes_limit = options_.kv_bytes_limit,
            .heartbeat_period = options_.heartbeat_period,
            .heartbeat_timeout = options_.heartbeat_timeout,
            .rejoin_timeout = options_.rejoin_timeout,
            .kv_bytes = [this] { return runner_.store().kv_bytes(); },
            .take = [this](WorkerTask& task,
                           bool must) { return tasks_.TryPush(task, must ? 0 : kTasksHeadroom); },
            .data_address = options_.data_address,
            .grants = options_.grants};
  }

  void RunTasks();
  void Communicate();
  void PublishState();

  WorkerOptions options_;
  Messenger& messenger_;
  const std::string backend_name_;
  BoundedQueue<WorkerTask> tasks_{kTasksMax};
  TaskRunner runner_;  // the engine thread's
  WorkerNode node_;    // the communication thread's
  std::atomic<bool> stopping_ = false;
  std::atomic<bool> engine_done_ = false;
  std::atomic<WorkerNode::State> state_ = WorkerNode::State::kJoining;
  std::atomic<uint64_t> id_ = 0;
  mutable std::mutex mutex_;
  std::condition_variable state_changed_;
  absl::Status why_lost_;              // under mutex_
  std::vector<TaskOutcome> outcomes_;  // under mutex_: from the engine, not yet sent
  std::string new_address_;            // under mutex_: of the coordinator; empty: as it was
  std::thread engine_thread_;
  std::thread comm_thread_;
};

void Worker::Impl::RunTasks() {
  while (std::optional<WorkerTask> task = tasks_.Pop()) {
    if (stopping_.load()) continue;
    TaskOutcome outcome = runner_.Run(*std::move(task));
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      outcomes_.push_back(std::move(outcome));
    }
    messenger_.Wake();
  }
}

void Worker::Impl::Communicate() {
  while (!engine_done_.load()) {
    std::vector<TaskOutcome> outcomes;
    std::string new_address;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      outcomes.swap(outcomes_);
      new_address.swap(new_address_);
    }
    if (!new_address.empty()) node_.SetCoordinatorAddress(new_address);
    for (TaskOutcome& outcome : outcomes) node_.Finish(std::move(outcome));
    if (stopping_.load()) node_.CancelAll();
    node_.Poll(outcomes.empty() ? kPollMax : absl::ZeroDuration());
    PublishState();
  }
}

void Worker::Impl::SetCoordinatorAddress(const std::string& address) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    new_address_ = address;
  }
  messenger_.Wake();
}

void Worker::Impl::PublishState() {
  if (node_.state() == state_.load()) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    why_lost_ = node_.why_lost();
    id_.store(node_.id());
    state_.store(node_.state());
  }
  state_changed_.notify_all();
}

absl::Status Worker::Impl::WaitUntilJoined(absl::Time deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto joined = [this] {
    return state_.load() == WorkerNode::State::kReady || state_.load() == WorkerNode::State::kLost;
  };
  if (deadline == absl::InfiniteFuture()) {
    state_changed_.wait(lock, joined);
  } else if (!state_changed_.wait_until(lock, absl::ToChronoTime(deadline), joined)) {
    return absl::DeadlineExceededError(
        absl::StrCat("no coordinator took this worker in at ", options_.coordinator_address));
  }
  if (state_.load() == WorkerNode::State::kReady) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("the coordinator at ", options_.coordinator_address,
                                             " was lost: ", why_lost_.message()));
}

WorkerSnapshot Worker::Impl::Snapshot() const {
  constexpr const char* kNames[] = {"joining", "ready", "rejoining", "lost"};
  const Messenger::Counters counters = messenger_.counters();
  return {.id = id_.load(),
          .state = kNames[static_cast<int>(state_.load())],
          .backend = backend_name_,
          .kv_bytes = runner_.store().kv_bytes(),
          .kv_bytes_limit = options_.kv_bytes_limit,
          .contexts = runner_.store().contexts(),
          .attends = runner_.attends(),
          .appends = runner_.appends(),
          .bytes_sent = counters.bytes_sent + runner_.exchange_bytes_sent(),
          .bytes_received = counters.bytes_received + runner_.exchange_bytes_received()};
}

Worker::Worker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Worker::~Worker() = default;

absl::StatusOr<std::unique_ptr<Worker>> Worker::Start(WorkerOptions options) {
  if (options.fabric == nullptr) {
    return absl::InvalidArgumentError("fabric is null, expected the worker's fabric");
  }
  if (options.kv_bytes_limit < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_bytes_limit is ", options.kv_bytes_limit, ", expected at least 1"));
  }
  ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                           MakeBackend(options.backend, options.threads));
  return std::unique_ptr<Worker>(
      new Worker(std::make_unique<Impl>(std::move(options), std::move(backend))));
}

absl::Status Worker::WaitUntilJoined(absl::Time deadline) {
  return impl_->WaitUntilJoined(deadline);
}

bool Worker::lost() const {
  return impl_->state() == WorkerNode::State::kLost;
}

bool Worker::rejoining() const {
  return impl_->state() == WorkerNode::State::kRejoining;
}

void Worker::SetCoordinatorAddress(const std::string& address) {
  impl_->SetCoordinatorAddress(address);
}

WorkerSnapshot Worker::Snapshot() const {
  return impl_->Snapshot();
}

}  // namespace annulus
