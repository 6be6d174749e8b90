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
#include "base/status.h"
#include "runtime/worker/coordinator_link.h"
#include "runtime/worker/task_executor.h"
#include "runtime/worker/task_queue.h"

namespace annulus {
namespace {

// One waits for messages while as many tasks run as may.
constexpr int kThreads = TaskQueue::kRunningMax + 1;
constexpr absl::Duration kWaitMax = absl::Milliseconds(50);
// How long a short task may run before somebody waits for messages beside it, and how long after
// the last one the thread that would do so looks at the time by itself.
constexpr absl::Duration kAloneMax = absl::Milliseconds(1);
constexpr absl::Duration kAlertFor = absl::Milliseconds(20);

std::string NameOf(const BackendCapabilities& capabilities) {
  const char* without = BuiltWithCuda() ? "" : "; built without CUDA";
  if (capabilities.detail.empty()) return capabilities.name;
  return absl::StrCat(capabilities.name, " (", capabilities.detail, without, ")");
}

}  // namespace

// Threads that are alike: one at a time waits for messages, the others run tasks or wait for
// something to do. Whoever has received a task runs it, if it may begin, and sends the answer: it
// is handed to no other thread. Another thread waits for messages meanwhile, for a short task only
// once it has run for kAloneMax: to be woken by each of them would cost them more than they take.
// While tasks come one thread wakes by the clock, so that none has to wake it.
class Worker::Impl {
 public:
  explicit Impl(WorkerOptions options)
      : options_(std::move(options)),
        messenger_(options_.fabric->messenger()),
        backend_name_(NameOf(options_.backend->capabilities())),
        executor_(std::move(options_.backend), *options_.fabric, *options_.clock,
                  {.kv_bytes_limit = options_.kv_bytes_limit,
                   .kv_in_host_memory = options_.kv_in_host_memory,
                   .on_exchange = [this] { AskForCompany(); },
                   .spans = options_.spans}),
        node_(messenger_, NodeOptions(), *options_.clock) {
    for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { Run(); });
    if (options_.grants == nullptr) return;
    options_.grants->SetTake([this](WorkerTask& task) {
      const bool taken = Take(task, /*must=*/false);
      // Whoever waits for messages does not see it.
      role_free_.notify_one();
      return taken;
    });
  }

  ~Impl() {
    if (options_.grants != nullptr) options_.grants->SetTake({});
    {
      const std::lock_guard<std::mutex> lock(roles_mutex_);
      stopping_ = true;
    }
    {
      const std::lock_guard<std::mutex> lock(node_mutex_);
      node_.CancelAll();
    }
    role_free_.notify_all();
    messenger_.Wake();
    for (std::thread& thread : threads_) thread.join();
  }

  absl::Status WaitUntilJoined(absl::Time deadline);
  CoordinatorLink::State state() const { return state_.load(); }
  void SetCoordinatorAddress(const std::string& address, const std::optional<LinkKey>& key) {
    const std::lock_guard<std::mutex> lock(node_mutex_);
    node_.SetCoordinatorAddress(address, key);
  }
  void Leave() {
    {
      const std::lock_guard<std::mutex> lock(node_mutex_);
      node_.Leave();
    }
    messenger_.Wake();
  }
  WorkerSnapshot Snapshot() const;

 private:
  CoordinatorLink::Options NodeOptions() {
    return {.coordinator_address = options_.coordinator_address,
            .name = options_.name,
            .backend = backend_name_,
            .kv_bytes_limit = options_.kv_bytes_limit,
            .heartbeat_period = options_.heartbeat_period,
            .heartbeat_timeout = options_.heartbeat_timeout,
            .rejoin_timeout = options_.rejoin_timeout,
            .kv_bytes = [this] { return executor_.store().kv_bytes(); },
            .owners = [this](size_t owners_max) { return executor_.TellOwners(owners_max); },
            .take = [this](WorkerTask& task, bool must) { return Take(task, must); },
            .data_address = options_.data_address,
            .grants = options_.grants,
            .coordinator_name = options_.coordinator_name,
            .coordinator_key = options_.coordinator_key};
  }

  using Lock = std::unique_lock<std::mutex>;

  bool Take(WorkerTask& task, bool must);
  void AskForCompany();
  void Run();
  void StandBy(Lock& lock);
  void RunTask(TaskQueue::Begun begun, Lock& lock);
  bool Another(TaskQueue::Lane lane);
  void Communicate();
  void PublishState();

  WorkerOptions options_;
  Messenger& messenger_;
  const std::string backend_name_;
  TaskExecutor executor_;
  mutable std::mutex node_mutex_;
  CoordinatorLink node_;  // under node_mutex_
  std::atomic<CoordinatorLink::State> state_ = CoordinatorLink::State::kJoining;
  std::atomic<uint64_t> id_ = 0;
  absl::Status why_lost_;  // under node_mutex_
  std::condition_variable state_changed_;

  mutable std::mutex roles_mutex_;  // the rest; taken after all others
  std::condition_variable role_free_;
  TaskQueue tasks_;
  uint64_t tasks_begun_ = 0;
  Histogram queue_wait_{Histogram::WaitBounds()};
  absl::Time begun_ = absl::InfinitePast();  // the last short task
  bool alone_ = false;                       // it needs nobody to wait for messages yet
  bool alert_ = false;                       // somebody without a role looks at the time by itself
  bool communicating_ = false;               // somebody waits for messages
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

bool Worker::Impl::Take(WorkerTask& task, bool must) {
  const std::lock_guard<std::mutex> lock(roles_mutex_);
  task.queued = options_.clock->Now();
  return tasks_.Add(task, must);
}

// A task that runs moves something, which only happens while somebody waits for messages.
void Worker::Impl::AskForCompany() {
  {
    const std::lock_guard<std::mutex> lock(roles_mutex_);
    alone_ = false;
    if (communicating_) return;
  }
  role_free_.notify_one();
}

// Waits for a role, or to see whether the short task that runs does so for long.
void Worker::Impl::StandBy(Lock& lock) {
  absl::Duration since = options_.clock->Now() - begun_;
  if (alert_ || since >= kAlertFor) {
    // It may have begun, and run for long, while this thread was waiting for messages.
    if (!alone_ || since < kAloneMax) role_free_.wait(lock);
  } else {
    alert_ = true;
    if (!alone_ || since < kAloneMax)
      role_free_.wait_for(lock, absl::ToChronoNanoseconds(kAloneMax));
    alert_ = false;
  }
  if (options_.clock->Now() - begun_ >= kAloneMax) alone_ = false;
}

// Whether one more thread is wanted now that a task of this lane has begun.
bool Worker::Impl::Another(TaskQueue::Lane lane) {
  if (tasks_.waiting() > 0 && tasks_.ready(begun_)) return true;
  if (communicating_) return false;
  return lane > TaskQueue::Lane::kShort || !alert_;
}

void Worker::Impl::Run() {
  Lock lock(roles_mutex_);
  while (!stopping_ || tasks_.running() > 0) {
    std::optional<TaskQueue::Begun> begun;
    if (!stopping_ && tasks_.waiting() > 0) begun = tasks_.Begin(options_.clock->Now());
    if (begun.has_value()) {
      RunTask(*std::move(begun), lock);
    } else if (!communicating_ && !alone_) {
      communicating_ = true;
      lock.unlock();
      Communicate();
      lock.lock();
      communicating_ = false;
    } else {
      StandBy(lock);
    }
  }
  role_free_.notify_all();
}

void Worker::Impl::RunTask(TaskQueue::Begun begun, Lock& lock) {
  const bool is_short = begun.lane <= TaskQueue::Lane::kShort;
  const absl::Time now = options_.clock->Now();
  ++tasks_begun_;
  queue_wait_.Observe(absl::ToDoubleSeconds(now - begun.task.queued));
  if (is_short) {
    alone_ = true;
    begun_ = now;
  }
  const bool another = Another(begun.lane);
  lock.unlock();
  if (another) role_free_.notify_one();
  {
    TaskOutcome outcome = executor_.Run(std::move(begun.task));
    const std::lock_guard<std::mutex> node_lock(node_mutex_);
    node_.Finish(std::move(outcome));
    if (const absl::Status health = executor_.health(); !health.ok()) node_.Fail(health);
  }
  lock.lock();
  tasks_.End(begun.id);
  if (is_short) alone_ = false;
  // Exchanges of tasks that still run move only while somebody waits for messages.
  if (stopping_) messenger_.Wake();
}

void Worker::Impl::Communicate() {
  absl::Duration wait;
  {
    const std::lock_guard<std::mutex> lock(node_mutex_);
    const absl::Duration until_due = node_.NextDue() - options_.clock->Now();
    wait = std::clamp(until_due, absl::ZeroDuration(), kWaitMax);
  }
  messenger_.Wait(wait);
  const std::lock_guard<std::mutex> lock(node_mutex_);
  node_.Handle();
  PublishState();
}

// Under node_mutex_.
void Worker::Impl::PublishState() {
  if (node_.state() == state_.load()) return;
  why_lost_ = node_.why_lost();
  id_.store(node_.id());
  state_.store(node_.state());
  state_changed_.notify_all();
}

absl::Status Worker::Impl::WaitUntilJoined(absl::Time deadline) {
  std::unique_lock<std::mutex> lock(node_mutex_);
  const auto joined = [this] {
    return state_.load() == CoordinatorLink::State::kReady ||
           state_.load() == CoordinatorLink::State::kLost;
  };
  if (deadline == absl::InfiniteFuture()) {
    state_changed_.wait(lock, joined);
  } else if (!state_changed_.wait_until(lock, absl::ToChronoTime(deadline), joined)) {
    return absl::DeadlineExceededError(
        absl::StrCat("no coordinator took this worker in at ", options_.coordinator_address));
  }
  if (state_.load() == CoordinatorLink::State::kReady) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("the coordinator at ", options_.coordinator_address,
                                             " was lost: ", why_lost_.message()));
}

WorkerSnapshot Worker::Impl::Snapshot() const {
  const Messenger::Counters counters = messenger_.counters();
  const std::lock_guard<std::mutex> lock(roles_mutex_);
  return {.id = id_.load(),
          .state = state_.load(),
          .backend = backend_name_,
          .kv_bytes = executor_.store().kv_bytes(),
          .kv_bytes_limit = options_.kv_bytes_limit,
          .table_bytes = executor_.store().table_bytes(),
          .contexts = executor_.store().contexts(),
          .attends = executor_.attends(),
          .appends = executor_.appends(),
          .steps = executor_.steps(),
          .bytes_sent = counters.bytes_sent + executor_.exchange_bytes_sent(),
          .bytes_received = counters.bytes_received + executor_.exchange_bytes_received(),
          .kv_bytes_evicted = executor_.store().evicted_bytes(),
          .tasks = tasks_begun_,
          .queue_wait = queue_wait_.Read(),
          .kernel_s = absl::ToDoubleSeconds(executor_.kernel_time()),
          .device_memory = executor_.device_memory()};
}

Worker::Worker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Worker::~Worker() = default;

absl::StatusOr<std::unique_ptr<Worker>> Worker::Start(WorkerOptions options) {
  if (options.fabric == nullptr) {
    return absl::InvalidArgumentError("fabric: null; expected the worker's fabric");
  }
  if (options.backend == nullptr) {
    return absl::InvalidArgumentError("backend: null; expected what the worker computes with");
  }
  if (options.kv_bytes_limit < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_bytes_limit: ", options.kv_bytes_limit, "; expected at least 1"));
  }
  return std::unique_ptr<Worker>(new Worker(std::make_unique<Impl>(std::move(options))));
}

absl::Status Worker::WaitUntilJoined(absl::Time deadline) {
  return impl_->WaitUntilJoined(deadline);
}

bool Worker::lost() const {
  return impl_->state() == CoordinatorLink::State::kLost;
}

bool Worker::rejoining() const {
  return impl_->state() == CoordinatorLink::State::kRejoining;
}

void Worker::SetCoordinatorAddress(const std::string& address, const std::optional<LinkKey>& key) {
  impl_->SetCoordinatorAddress(address, key);
}

void Worker::Leave() {
  impl_->Leave();
}

bool Worker::left() const {
  return impl_->state() == CoordinatorLink::State::kLeft;
}

WorkerSnapshot Worker::Snapshot() const {
  return impl_->Snapshot();
}

}  // namespace annulus
