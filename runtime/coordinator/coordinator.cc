#include "runtime/coordinator/coordinator.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/context/check_tensor.h"
#include "runtime/context/layout.h"
#include "runtime/coordinator/calls/check_header.h"
#include "runtime/coordinator/calls/column_call.h"
#include "runtime/coordinator/calls/direct_append_call.h"
#include "runtime/coordinator/calls/select_first.h"
#include "runtime/coordinator/coordinator_loop.h"
#include "runtime/coordinator/coordinator_options.h"
#include "runtime/limits.h"

namespace annulus {
namespace {

// How often a caller that may be cancelled is asked, and the longest that anybody waits.
constexpr absl::Duration kCancelledPeriod = absl::Milliseconds(10);
constexpr absl::Duration kWaitMax = absl::Milliseconds(50);
// How long after a caller's turn the next turn is left to callers.
constexpr absl::Duration kCallersFirst = absl::Milliseconds(5);

}  // namespace

// The threads of calls take turns at waiting for messages: whoever waits for an answer and finds
// nobody at it does, whoever the messages are for, until its own answer has come. So a call on its
// own is carried out by its own thread alone. The coordinator's thread takes a turn only where no
// call has lately: for workers that join, heartbeats, and time that passes.
class Coordinator::Impl {
 public:
  explicit Impl(CoordinatorOptions options)
      : options_(std::move(options)),
        incarnation_(IncarnationOf(options_)),
        messenger_(options_.fabric->messenger()),
        admitted_(messenger_, kWorkersMax),
        planner_(options_.cluster, options_.cluster_shared, options_.limits.list_cache_bytes,
                 incarnation_.number),
        last_call_(incarnation_.number),
        node_(messenger_, options_.limits, options_.heartbeat_timeout, *options_.clock,
              incarnation_, options_.workers_need_keys ? &admitted_ : nullptr),
        thread_([this] { Run(); }) {}

  ~Impl() {
    Do([](auto& node) { node.GiveUpAll(absl::CancelledError("the coordinator shuts down")); });
    messenger_.Wake();
    {
      std::unique_lock<std::mutex> lock(mutex_);
      calls_over_.wait(lock, [this] { return calls_ == 0; });
      stopping_ = true;
    }
    quiet_.notify_one();
    messenger_.Wake();
    thread_.join();
  }

  // The calls that callers make.
  absl::StatusOr<ContextInfo> Answer(const ContextSpec& spec, const CallContext& call);
  absl::StatusOr<AppendResult> Answer(const AppendRequest& request, const CallContext& call);
  absl::StatusOr<AppendResult> Answer(const DirectAppend& request, const CallContext& call);
  absl::StatusOr<AttendResult> Answer(const AttendRequest& request, const CallContext& call);
  absl::StatusOr<SelectResult> Answer(const SelectRequest& request, const CallContext& call);
  absl::StatusOr<CompressResult> Answer(const CompressRequest& request, const CallContext& call);
  absl::StatusOr<StepResults> Answer(const StepsRequest& request, const CallContext& call);
  absl::StatusOr<ContextInfo> Answer(const ForkRequest& request, const CallContext& call);
  absl::StatusOr<ContextInfo> Answer(const TruncateRequest& request, const CallContext& call);
  absl::StatusOr<ContextList> Answer(const ListRequest& request, const CallContext& call);
  absl::StatusOr<ReleaseResult> Answer(const ReleaseRequest& request, const CallContext& call);
  absl::StatusOr<ContextInfo> Answer(const DescribeRequest& request, const CallContext& call);
  absl::StatusOr<KeepAliveReply> Answer(const KeepAliveRequest& request, const CallContext& call);
  absl::StatusOr<ClusterStatus> Answer(const StatusRequest& request, const CallContext& call);

  template <typename Request>
  absl::StatusOr<CallSize> Check(const Request& header, const CallContext& call) {
    const ContextId id = header.context;
    const auto look = [&](auto& node) { return node.LookToUse(id, header.layer, call.caller); };
    ANNULUS_ASSIGN_OR_RETURN(const ShardMapPtr map, Ask(look));
    const auto end = [this, id](const void*) { Ask([id](auto& node) { node.StopUsing(id); }); };
    std::shared_ptr<const void> use(this, end);
    ANNULUS_ASSIGN_OR_RETURN(CallSize size, CheckHeader(*map, header, planner_));
    size.use = std::move(use);
    return size;
  }

  ClusterView View(size_t places_max) {
    return Ask([&](const auto& node) { return node.View(places_max); });
  }
  Messenger& messenger() { return messenger_; }
  AdmittedWorkers& admitted() { return admitted_; }

 private:
  // Runs a call to its end. What the core says of one that went well.
  absl::StatusOr<action::Finish> Call(Request request, TensorCall& tensors,
                                      const CallContext& context);
  absl::StatusOr<action::Finish> Call(Request request, const CallContext& context) {
    NoTensors tensors;
    return Call(std::move(request), tensors, context);
  }

  // Carries batches of a call out.
  auto RunnerOf(const CallContext& call) {
    return [this, &call](auto& batch) { return Call(batch.request(), batch, call); };
  }

  // What `read` returns of the node, or has it do at its next turn.
  template <typename Read>
  std::invoke_result_t<Read, CoordinatorLoop&> Ask(Read read) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return read(node_);
  }

  absl::StatusOr<ShardMapPtr> Look(ContextId id, int layer, const CallContext& call) {
    return Ask([&](const auto& node) { return node.core().Look(id, layer, call.caller); });
  }

  // A call's thread, as the others see it.
  struct CallThread {
    std::deque<CallNews> news;
    std::condition_variable changed;  // there is news, or nobody has the turn
  };

  void Run();
  void Do(absl::FunctionRef<void(CoordinatorLoop&)> what);
  std::optional<CallNews> AwaitNews(CallThread& caller, absl::Duration patience);
  void TakeTurn(absl::Duration wait, std::unique_lock<std::mutex>& lock);
  void HandOn();

  CoordinatorOptions options_;
  const Incarnation incarnation_;
  Messenger& messenger_;
  AdmittedWorkers admitted_;
  CallPlanner planner_;
  // Workers of an earlier coordinator know its calls' numbers: these begin above them.
  std::atomic<CallId> last_call_;
  std::mutex mutex_;  // all that follows, but not while somebody waits for messages
  CoordinatorLoop node_;
  bool waiting_ = false;               // somebody has the turn
  absl::Time turn_end_;                // at the latest
  std::deque<CallThread*> followers_;  // callers that wait for it
  absl::Time callers_until_;           // it is left to callers
  bool stopping_ = false;
  std::condition_variable quiet_;  // the coordinator's thread waits for it
  int calls_ = 0;                  // under way
  std::condition_variable calls_over_;
  std::thread thread_;
};

// Has the node carry out what somebody wants of it.
void Coordinator::Impl::Do(absl::FunctionRef<void(CoordinatorLoop&)> what) {
  const std::lock_guard<std::mutex> lock(mutex_);
  what(node_);
  node_.Handle();
  if (waiting_ && node_.NextDue() < turn_end_) messenger_.Wake();  // it would wait too long now
}

// Waits for messages once, and handles them.
void Coordinator::Impl::TakeTurn(absl::Duration wait, std::unique_lock<std::mutex>& lock) {
  const absl::Time now = options_.clock->Now();
  turn_end_ = std::clamp(node_.NextDue(), now, now + wait);
  waiting_ = true;
  lock.unlock();
  messenger_.Wait(turn_end_ - now);
  lock.lock();
  waiting_ = false;
  node_.Handle();
}

// Sees to it that one of the callers that wait takes the turn, if nobody has it.
void Coordinator::Impl::HandOn() {
  if (!waiting_ && !followers_.empty()) followers_.front()->changed.notify_one();
}

void Coordinator::Impl::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    if (waiting_ || !followers_.empty() || absl::Now() < callers_until_) {
      quiet_.wait_for(lock, absl::ToChronoMilliseconds(kCallersFirst));
    } else {
      TakeTurn(kWaitMax, lock);
      HandOn();
    }
  }
}

// The next news of a call; nullopt if there is none within `patience`.
std::optional<CallNews> Coordinator::Impl::AwaitNews(CallThread& caller, absl::Duration patience) {
  const absl::Time until = absl::Now() + patience;
  std::unique_lock<std::mutex> lock(mutex_);
  for (absl::Time now = absl::Now(); caller.news.empty() && now < until; now = absl::Now()) {
    if (!waiting_) {
      TakeTurn(until - now, lock);
      callers_until_ = absl::Now() + kCallersFirst;
    } else {
      followers_.push_back(&caller);
      caller.changed.wait_for(lock, absl::ToChronoNanoseconds(until - now));
      std::erase(followers_, &caller);
    }
  }
  HandOn();
  if (caller.news.empty()) return std::nullopt;
  CallNews news = std::move(caller.news.front());
  caller.news.pop_front();
  return news;
}

absl::StatusOr<action::Finish> Coordinator::Impl::Call(Request request, TensorCall& tensors,
                                                       const CallContext& context) {
  const CallId id = ++last_call_;
  CallThread caller;
  Do([&](CoordinatorLoop& node) {
    ++calls_;
    node.Begin({id, std::move(request), context.deadline, context.caller}, [&](CallNews news) {
      caller.news.push_back(std::move(news));
      caller.changed.notify_one();
    });
  });
  const auto give_up = [&](absl::Status why) { Do([&](auto& node) { node.GiveUp(id, why); }); };
  bool asked_to_end = false;
  absl::Status failure;  // the core may have finished the call before it hears of this
  while (true) {
    std::optional<CallNews> news =
        AwaitNews(caller, context.cancelled ? kCancelledPeriod : kWaitMax);
    if (context.cancelled && !asked_to_end && context.cancelled()) {
      asked_to_end = true;
      give_up(absl::CancelledError("the caller cancelled the call"));
    }
    if (!news.has_value()) continue;
    if (auto* end = std::get_if<action::Finish>(&*news)) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (--calls_ == 0) calls_over_.notify_one();
      ANNULUS_RETURN_IF_ERROR(failure);
      ANNULUS_RETURN_IF_ERROR(end->status);
      return *std::move(end);
    }
    if (auto* answer = std::get_if<ShareAnswer>(&*news)) {
      if (!failure.ok()) continue;
      failure = tensors.OnAnswer(std::move(*answer));
      if (!failure.ok()) give_up(failure);
      continue;
    }
    absl::StatusOr<PreparedCall> prepared = tensors.Prepare(std::get<action::Admit>(*news));
    if (prepared.ok()) {
      Do([&](CoordinatorLoop& node) { node.Prepared(id, *std::move(prepared)); });
    } else {
      give_up(prepared.status());
    }
  }
}

Coordinator::Coordinator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Coordinator::~Coordinator() = default;

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Start(CoordinatorOptions options) {
  ANNULUS_RETURN_IF_ERROR(CheckOptions(options));
  if (options.workers_need_keys) options.fabric->messenger().SetDoor(PeerDoor::kKeys);
  return std::unique_ptr<Coordinator>(new Coordinator(std::make_unique<Impl>(std::move(options))));
}

std::string Coordinator::fabric_address() const {
  return impl_->messenger().address();
}

AdmittedWorkers& Coordinator::admitted() {
  return impl_->admitted();
}

Messenger::Counters Coordinator::fabric_counters() const {
  return impl_->messenger().counters();
}

ClusterView Coordinator::View(size_t places_max) const {
  return impl_->View(places_max);
}

absl::StatusOr<ContextInfo> Coordinator::Impl::Answer(const ContextSpec& spec,
                                                      const CallContext& call) {
  ANNULUS_RETURN_IF_ERROR(ValidateSpec(spec));
  ANNULUS_ASSIGN_OR_RETURN(const auto finish, Call(request::Create{spec}, call));
  return Answer(DescribeRequest{finish.context}, call);
}

absl::StatusOr<AppendResult> Coordinator::Impl::Answer(const AppendRequest& request,
                                                       const CallContext& call) {
  BatchCall append({CallItem(request)}, call, planner_, *options_.clock);
  ANNULUS_ASSIGN_OR_RETURN(const auto finish, Call(append.request(), append, call));
  return AppendResultOf(finish);
}

absl::StatusOr<AppendResult> Coordinator::Impl::Answer(const DirectAppend& request,
                                                       const CallContext& call) {
  CallContext bounded = call;
  bounded.deadline = std::min(call.deadline, options_.clock->Now() + kUploadTimeMax);
  DirectAppendCall append(request, bounded, *options_.clock);
  ANNULUS_ASSIGN_OR_RETURN(const auto finish, Call(append.request(), append, bounded));
  return AppendResultOf(finish);
}

absl::StatusOr<AttendResult> Coordinator::Impl::Answer(const AttendRequest& request,
                                                       const CallContext& call) {
  ANNULUS_RETURN_IF_ERROR(CheckBytes("q", request.q, options_.limits.request_bytes_max));
  const auto look = [&](ContextId id) { return Look(id, request.layer, call); };
  const auto run = RunnerOf(call);
  return SelectAndAttend(request, call, planner_, *options_.clock, look, run, run);
}

absl::StatusOr<SelectResult> Coordinator::Impl::Answer(const SelectRequest& request,
                                                       const CallContext& call) {
  const auto look = [&](ContextId id) { return Look(id, request.layer, call); };
  const auto run = RunnerOf(call);
  return SelectAlone(request, call, planner_, *options_.clock, look, run, run);
}

absl::StatusOr<CompressResult> Coordinator::Impl::Answer(const CompressRequest& request,
                                                         const CallContext& call) {
  const auto look = [&](ContextId id) { return Look(id, request.layer, call); };
  const auto run = RunnerOf(call);
  return Compress(request, call, planner_, *options_.clock, look, run, run);
}

absl::StatusOr<StepResults> Coordinator::Impl::Answer(const StepsRequest& request,
                                                      const CallContext& call) {
  return StepInParts(request.steps, call.caller.tenant, planner_, [&](auto part) {
    return SelectAndStep(part, call, planner_, *options_.clock, RunnerOf(call));
  });
}

absl::StatusOr<ContextInfo> Coordinator::Impl::Answer(const ForkRequest& request,
                                                      const CallContext& call) {
  ANNULUS_ASSIGN_OR_RETURN(const auto finish, Call(request, call));
  return Answer(DescribeRequest{finish.context}, call);
}

absl::StatusOr<ContextInfo> Coordinator::Impl::Answer(const TruncateRequest& request,
                                                      const CallContext& call) {
  ANNULUS_RETURN_IF_ERROR(Call(request, call).status());
  return Answer(DescribeRequest{request.context}, call);
}

absl::StatusOr<ContextList> Coordinator::Impl::Answer(const ListRequest& request,
                                                      const CallContext& call) {
  const auto list = [&](const auto& node) { return node.core().List(request, call.caller); };
  ANNULUS_ASSIGN_OR_RETURN(auto contexts, Ask(list));
  return ContextList{std::move(contexts)};
}

absl::StatusOr<ReleaseResult> Coordinator::Impl::Answer(const ReleaseRequest& request,
                                                        const CallContext& call) {
  ANNULUS_RETURN_IF_ERROR(Call(request, call).status());
  return ReleaseResult();
}

absl::StatusOr<KeepAliveReply> Coordinator::Impl::Answer(const KeepAliveRequest& request,
                                                         const CallContext& call) {
  ANNULUS_ASSIGN_OR_RETURN(const auto finish, Call(request, call));
  KeepAliveReply reply;
  for (size_t i = 0; i < finish.items.size(); ++i) {
    const absl::Status& status = finish.items[i].status;
    if (!status.ok()) reply.failures.push_back({static_cast<int>(i), status});
  }
  return reply;
}

absl::StatusOr<ContextInfo> Coordinator::Impl::Answer(const DescribeRequest& request,
                                                      const CallContext& call) {
  // Renews its lease, as any call on it.
  ANNULUS_RETURN_IF_ERROR(RenewedOf(Answer(KeepAliveRequest{{request.context}}, call), 1)[0]);
  return Ask([&](auto& node) { return node.core().Describe(request.context, call.caller); });
}

absl::StatusOr<ClusterStatus> Coordinator::Impl::Answer(const StatusRequest&,
                                                        const CallContext& call) {
  const absl::Time now = options_.clock->Now();
  return Ask([&](const auto& node) { return node.core().Status(now, call.caller); });
}

absl::StatusOr<CallSize> Coordinator::Check(const AppendRequest& header, const CallContext& call) {
  return impl_->Check(header, call);
}

absl::StatusOr<CallSize> Coordinator::Check(const AttendRequest& header, const CallContext& call) {
  return impl_->Check(header, call);
}

absl::StatusOr<AnyAnswer> Coordinator::Answer(const AnyRequest& request, const CallContext& call) {
  return AnswerAny(request, [&](const auto& typed) { return impl_->Answer(typed, call); });
}

}  // namespace annulus
