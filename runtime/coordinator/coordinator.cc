#include "runtime/coordinator/coordinator.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "runtime/coordinator/append_work.h"
#include "runtime/coordinator/attend_work.h"
#include "runtime/coordinator/grant_work.h"
#include "runtime/coordinator/node.h"
#include "runtime/coordinator/step_work.h"
#include "runtime/store/context_layout.h"

namespace annulus {
namespace {

// How often a caller that may be cancelled is asked, and the longest sleep of the thread.
constexpr absl::Duration kCancelledPeriod = absl::Milliseconds(10);
constexpr absl::Duration kPollMax = absl::Milliseconds(50);

// What the communication thread tells a caller's thread.
class Mailbox {
 public:
  void Put(CallNews news) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      news_.push_back(std::move(news));
    }
    arrived_.notify_one();
  }

  // nullopt if nothing came within `wait`.
  std::optional<CallNews> Take(absl::Duration wait) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!arrived_.wait_for(lock, absl::ToChronoMilliseconds(wait),
                           [this] { return !news_.empty(); })) {
      return std::nullopt;
    }
    CallNews news = std::move(news_.front());
    news_.pop_front();
    return news;
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<CallNews> news_;
};

// A call without tensors.
class NoWork final : public CallWork {
 public:
  absl::Status OnAnswer(RankAnswer) override { return absl::OkStatus(); }
};

}  // namespace

class Coordinator::Impl {
 public:
  explicit Impl(CoordinatorOptions options)
      : options_(std::move(options)),
        incarnation_(IncarnationOf(options_)),
        messenger_(options_.fabric->messenger()),
        planner_(options_.cluster, options_.cluster_shared),
        node_(messenger_, options_.limits, options_.heartbeat_timeout, *options_.clock,
              incarnation_),
        last_call_(incarnation_.number),
        thread_([this] { Run(); }) {}

  ~Impl() {
    Post([](CoordinatorNode& node) {
      node.GiveUpAll(absl::CancelledError("the coordinator is shutting down"));
    });
    stopping_.store(true);
    messenger_.Wake();
    thread_.join();
  }

  // Runs a call to its end. `finish` gets what the core says of a call that went well.
  absl::Status Call(event::Begin begin, CallWork& work, const CallContext& context,
                    action::Finish* finish);

  // What `read` returns of the core, read by the communication thread.
  template <typename Read>
  auto Ask(Read read) {
    using Answer = decltype(read(std::declval<const CoordinatorCore&>()));
    auto promise = std::make_shared<std::promise<Answer>>();
    std::future<Answer> answer = promise->get_future();
    Post([promise, read](CoordinatorNode& node) { promise->set_value(read(node.core())); });
    return answer.get();
  }

  CoordinatorOptions& options() { return options_; }
  AttendPlanner& planner() { return planner_; }
  StepPlanner& step_planner() { return step_planner_; }
  Messenger& messenger() { return messenger_; }

 private:
  using Job = std::function<void(CoordinatorNode&)>;

  static Incarnation IncarnationOf(const CoordinatorOptions& options) {
    const int64_t now_us = absl::ToUnixMicros(options.clock->Now());
    return {static_cast<uint64_t>(std::max<int64_t>(1, now_us)), options.recovery_wait};
  }

  void Run();
  bool RunJobs();
  void Post(Job job) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(std::move(job));
    }
    messenger_.Wake();
  }

  CoordinatorOptions options_;
  const Incarnation incarnation_;
  Messenger& messenger_;
  AttendPlanner planner_;
  StepPlanner step_planner_;
  CoordinatorNode node_;  // the communication thread's
  // Workers of an earlier coordinator know its calls' numbers: these begin above them.
  std::atomic<CallId> last_call_;
  std::atomic<bool> stopping_ = false;
  std::mutex mutex_;
  std::vector<Job> jobs_;
  std::thread thread_;
};

bool Coordinator::Impl::RunJobs() {
  std::vector<Job> jobs;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    jobs.swap(jobs_);
  }
  for (const Job& job : jobs) job(node_);
  return !jobs.empty();
}

void Coordinator::Impl::Run() {
  while (!stopping_.load()) {
    node_.Poll(RunJobs() ? absl::ZeroDuration() : kPollMax);
  }
  RunJobs();
  node_.Poll(absl::ZeroDuration());
}

absl::Status Coordinator::Impl::Call(event::Begin begin, CallWork& work, const CallContext& context,
                                     action::Finish* finish) {
  const CallId id = begin.call = ++last_call_;
  begin.deadline = context.deadline;
  auto mailbox = std::make_shared<Mailbox>();
  Post([begin, mailbox](CoordinatorNode& node) {
    node.Begin(begin, [mailbox](CallNews news) { mailbox->Put(std::move(news)); });
  });
  const auto give_up = [this, id](absl::Status why) {
    Post([id, why](CoordinatorNode& node) { node.GiveUp(id, why); });
  };
  bool asked_to_end = false;
  absl::Status failure;  // the core may have finished the call before it hears of this
  while (true) {
    std::optional<CallNews> news =
        mailbox->Take(context.cancelled ? kCancelledPeriod : absl::Seconds(1));
    if (context.cancelled && !asked_to_end && context.cancelled()) {
      asked_to_end = true;
      give_up(absl::CancelledError("the caller cancelled the call"));
    }
    if (!news.has_value()) continue;
    if (auto* end = std::get_if<action::Finish>(&*news)) {
      *finish = *std::move(end);
      return failure.ok() ? finish->status : failure;
    }
    if (auto* answer = std::get_if<RankAnswer>(&*news)) {
      if (!failure.ok()) continue;
      failure = work.OnAnswer(std::move(*answer));
      if (!failure.ok()) give_up(failure);
      continue;
    }
    const auto* step = std::get_if<action::AdmitStep>(&*news);
    absl::StatusOr<PreparedWork> prepared =
        step != nullptr ? work.Prepare(*step) : work.Prepare(std::get<action::Admit>(*news));
    if (!prepared.ok()) {
      give_up(prepared.status());
      continue;
    }
    Post([id, prepared = *std::move(prepared)](CoordinatorNode& node) mutable {
      node.Prepared(id, std::move(prepared));
    });
  }
}

Coordinator::Coordinator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Coordinator::~Coordinator() = default;

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Start(CoordinatorOptions options) {
  if (options.fabric == nullptr) {
    return absl::InvalidArgumentError("fabric is null, expected the coordinator's fabric");
  }
  if (options.heartbeat_timeout < 2 * options.heartbeat_period ||
      options.heartbeat_period <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("heartbeat_timeout is ", absl::FormatDuration(options.heartbeat_timeout),
                     ", expected at least twice heartbeat_period ",
                     absl::FormatDuration(options.heartbeat_period), ", which must be positive"));
  }
  return std::unique_ptr<Coordinator>(new Coordinator(std::make_unique<Impl>(std::move(options))));
}

std::string Coordinator::fabric_address() const {
  return impl_->messenger().address();
}

absl::StatusOr<ContextInfo> Coordinator::CreateContext(const ContextSpec& spec,
                                                       const CallContext& call) {
  ANNULUS_RETURN_IF_ERROR(ValidateSpec(spec));
  NoWork work;
  action::Finish finish;
  event::Begin begin;
  begin.kind = event::Begin::Kind::kCreate;
  begin.spec = spec;
  ANNULUS_RETURN_IF_ERROR(impl_->Call(begin, work, call, &finish));
  return Describe(finish.context, call);
}

absl::StatusOr<AppendResult> Coordinator::Append(const AppendRequest& request,
                                                 const CallContext& call) {
  AppendWork work(request);
  action::Finish finish;
  event::Begin begin;
  begin.kind = event::Begin::Kind::kAppend;
  begin.context = request.context;
  begin.layer = request.layer;
  begin.begin = request.start;
  begin.tokens = request.k.tokens;
  begin.key = request.key;
  ANNULUS_RETURN_IF_ERROR(impl_->Call(begin, work, call, &finish));
  return AppendResult{finish.epoch, finish.tokens};
}

absl::StatusOr<AppendResult> Coordinator::AppendDirect(const DirectAppend& request,
                                                       const GrantSink& granted,
                                                       const CallContext& call) {
  CallContext bounded = call;
  const Clock& clock = *impl_->options().clock;
  bounded.deadline = std::min(call.deadline, clock.Now() + kUploadTimeMax);
  GrantWork work(request, granted, bounded.deadline, clock);
  action::Finish finish;
  event::Begin begin;
  begin.kind = event::Begin::Kind::kAppend;
  begin.direct = true;
  begin.context = request.context;
  begin.layer = request.layer;
  begin.begin = request.start;
  begin.tokens = request.tokens;
  begin.key = request.key;
  ANNULUS_RETURN_IF_ERROR(impl_->Call(begin, work, bounded, &finish));
  return AppendResult{finish.epoch, finish.tokens};
}

absl::StatusOr<AttendResult> Coordinator::Attend(const AttendRequest& request,
                                                 const CallContext& call) {
  const absl::Time start = impl_->options().clock->Now();
  AttendWork work(request, call.deadline, impl_->planner(), *impl_->options().clock);
  action::Finish finish;
  event::Begin begin;
  begin.kind = event::Begin::Kind::kAttend;
  begin.context = request.context;
  begin.layer = request.layer;
  begin.begin = request.q_start;
  begin.tokens = request.q.tokens;
  begin.kv_len = request.kv_len;
  ANNULUS_RETURN_IF_ERROR(impl_->Call(begin, work, call, &finish));
  ANNULUS_ASSIGN_OR_RETURN(AttendResult result, std::move(work).TakeResult());
  const absl::Duration elapsed = impl_->options().clock->Now() - start;
  result.stats.elapsed_s = absl::ToDoubleSeconds(elapsed);
  Log(LogLevel::kDebug, "attend",
      {{"request", request.request_id},
       {"context", request.context},
       {"layer", request.layer},
       {"plan", result.stats.plan},
       {"bytes", result.stats.bytes_moved},
       {"elapsed_s", result.stats.elapsed_s}});
  return result;
}

std::vector<absl::StatusOr<StepResult>> Coordinator::Step(absl::Span<const StepRequest> requests,
                                                          const CallContext& call) {
  std::vector<absl::StatusOr<StepResult>> results;
  if (requests.empty()) return results;
  StepWork work(requests, call.deadline, impl_->step_planner(), *impl_->options().clock);
  action::Finish finish;
  event::Begin begin;
  begin.kind = event::Begin::Kind::kStep;
  begin.items.reserve(requests.size());
  for (const StepRequest& request : requests) {
    begin.items.push_back({request.context, request.layer, request.start, request.k.tokens,
                           request.q.tokens, request.key});
  }
  const absl::Status failure = impl_->Call(std::move(begin), work, call, &finish);
  if (failure.ok()) return std::move(work).TakeResults(finish);
  for (size_t i = 0; i < requests.size(); ++i) results.push_back(failure);
  return results;
}

absl::StatusOr<ContextInfo> Coordinator::Fork(const ForkRequest& request, const CallContext& call) {
  NoWork work;
  action::Finish finish;
  event::Begin begin;
  begin.kind = event::Begin::Kind::kFork;
  begin.context = request.context;
  begin.fork_tokens = request.tokens;
  ANNULUS_RETURN_IF_ERROR(impl_->Call(std::move(begin), work, call, &finish));
  return Describe(finish.context, call);
}

absl::StatusOr<ContextInfo> Coordinator::Truncate(const TruncateRequest& request,
                                                  const CallContext& call) {
  NoWork work;
  action::Finish finish;
  event::Begin begin;
  begin.kind = event::Begin::Kind::kTruncate;
  begin.context = request.context;
  begin.tokens = request.tokens;
  ANNULUS_RETURN_IF_ERROR(impl_->Call(std::move(begin), work, call, &finish));
  return Describe(request.context, call);
}

absl::StatusOr<std::vector<ContextInfo>> Coordinator::List(const ListRequest& request,
                                                           const CallContext&) {
  return impl_->Ask([request](const CoordinatorCore& core) { return core.List(request); });
}

absl::Status Coordinator::Release(ContextId context, const CallContext& call) {
  NoWork work;
  action::Finish finish;
  event::Begin begin;
  begin.kind = event::Begin::Kind::kRelease;
  begin.context = context;
  return impl_->Call(begin, work, call, &finish);
}

absl::StatusOr<ContextInfo> Coordinator::Describe(ContextId context, const CallContext&) {
  return impl_->Ask([context](const CoordinatorCore& core) { return core.Describe(context); });
}

absl::StatusOr<ClusterStatus> Coordinator::Status(const CallContext&) {
  return impl_->Ask([](const CoordinatorCore& core) { return core.Status(); });
}

}  // namespace annulus
