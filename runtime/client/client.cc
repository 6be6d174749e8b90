#include "annulus/client.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "base/quoted.h"
#include "base/secret.h"
#include "base/status.h"
#include "base/trace_context.h"
#include "runtime/client/append_pieces.h"
#include "runtime/client/call_threads.h"
#include "runtime/client/check_request.h"
#include "runtime/client/kept_handles.h"
#include "runtime/client/lease_keeper.h"
#include "runtime/client/retry.h"
#include "runtime/client/transport.h"
#include "runtime/protocol/public/step_batch.h"
#include "runtime/service/list_not_kept.h"

namespace annulus {
namespace {

constexpr int kAsyncCallsMax = 1024;

absl::Status CheckOptions(int async_calls_max, const RetryOptions& retry) {
  if (async_calls_max < 1 || async_calls_max > kAsyncCallsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("async_calls_max: ", async_calls_max, "; expected 1 to ", kAsyncCallsMax));
  }
  return CheckRetryOptions(retry);
}

template <typename Done>
absl::Status CheckDone(const Done& done) {
  if (done != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError("done: empty; expected a function");
}

// What gRPC says of a call that ended before its handler did.
constexpr char kEnded[] = "CANCELLED";
constexpr char kLate[] = "Deadline Exceeded";

// Says in our words what gRPC says in its own.
absl::Status Told(const absl::Status& status, const Attempt& attempt) {
  absl::string_view rest = status.message();
  if (absl::IsDeadlineExceeded(status) && absl::ConsumePrefix(&rest, kLate)) {
    return absl::DeadlineExceededError(absl::StrCat("the call's deadline passed", rest));
  }
  if (!absl::IsCancelled(status) || !absl::ConsumePrefix(&rest, kEnded)) return status;
  if (attempt.cancel.cancelled()) {
    return absl::CancelledError(absl::StrCat("the caller cancelled the call", rest));
  }
  return absl::UnavailableError(absl::StrCat(
      "the service ended the call: it shuts down, or was kept waiting; try again", rest));
}

// Why an attempt must not start, if it must not.
absl::Status CheckAttempt(const Attempt& attempt) {
  if (!attempt.traceparent.empty() && !ParseTraceparent(attempt.traceparent).has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("traceparent: ", Quoted(attempt.traceparent),
                     "; expected it as W3C Trace Context has it, 00-TRACE-SPAN-FLAGS in hex"));
  }
  if (attempt.cancel.cancelled()) return absl::CancelledError("the caller cancelled the call");
  if (absl::Now() < attempt.deadline) return absl::OkStatus();
  return absl::DeadlineExceededError("the deadline passed before the call was sent");
}

}  // namespace

class Client::Impl {
 public:
  Impl(std::unique_ptr<Transport> transport, int async_calls_max, const RetryOptions& retry)
      : transport_(std::move(transport)),
        client_id_(RandomSecret()),  // never 0, which means none
        budget_(retry, RandomSecret()),
        leases_([this](absl::Span<const ContextId> contexts, absl::Time deadline,
                       const CancelToken& cancel) {
          const Attempt attempt{.deadline = deadline, .cancel = cancel, .progress = {}};
          const KeepAliveRequest request{{contexts.begin(), contexts.end()}};
          return RenewedOf(transport_->Call(request, attempt), contexts.size());
        }),
        threads_(async_calls_max) {}

  // Tries until it goes well or is not worth another try.
  template <typename Request>
  absl::StatusOr<AnswerTo<Request>> Call(Repeat repeat, const Request& request,
                                         const CallOptions& options, int* attempts = nullptr) {
    Attempt attempt = AttemptOf(options);
    int64_t pieces_done = 0;
    attempt.pieces_done = &pieces_done;
    RetryLoop loop(&budget_, repeat, attempt.deadline, attempt.cancel);
    while (true) {
      ANNULUS_RETURN_IF_ERROR(CheckAttempt(attempt));
      if (attempts != nullptr) ++*attempts;
      absl::StatusOr<AnswerTo<Request>> answer = transport_->Call(request, attempt);
      if (!answer.ok()) answer = Told(answer.status(), attempt);
      if (!loop.Again(answer.status())) return answer;
    }
  }

  // Calls that make a context, whose lease the client then renews.
  template <typename Request>
  absl::StatusOr<ContextInfo> Make(const Request& request, const CallOptions& options) {
    absl::StatusOr<ContextInfo> made = Call(Repeat::kTwice, request, options);
    if (made.ok()) leases_.Add(made->id, made->spec.lease);
    return made;
  }

  absl::StatusOr<AttendResult> Attend(const AttendRequest& request, const CallOptions& options);
  StepResults Step(absl::Span<const StepRequest> requests, const CallOptions& options);

  // Fills a key that the caller left out, for `count` changes.
  void FillKey(RequestKey* key, uint64_t count) {
    if (key->given()) return;
    *key = {.client = client_id_, .sequence = next_sequence_.fetch_add(count)};
  }

  Transport& transport() { return *transport_; }
  LeaseKeeper& leases() { return leases_; }
  CallThreads& threads() { return threads_; }

 private:
  StepResults Try(const std::vector<StepRequest>& steps, const Attempt& attempt);
  StepResults Send(const std::vector<StepRequest>& steps, const Attempt& attempt);
  static Attempt AttemptOf(const CallOptions& options) {
    return {.deadline = absl::Now() + options.timeout,
            .cancel = options.cancel,
            .progress = options.progress,
            .traceparent = options.traceparent};
  }

  const std::unique_ptr<Transport> transport_;
  const uint64_t client_id_;
  std::atomic<uint64_t> next_sequence_ = 1;
  RetryBudget budget_;
  KeptHandles handles_;
  LeaseKeeper leases_;
  CallThreads threads_;  // last: its jobs use the others
};

// What the service has forgotten of the lists goes with the second call.
absl::StatusOr<AttendResult> Client::Impl::Attend(const AttendRequest& request,
                                                  const CallOptions& options) {
  if (!KeptHandles::HasAny(request.lists)) return Call(Repeat::kHarmless, request, options);
  const absl::Time deadline = absl::Now() + options.timeout;
  AttendRequest sent = request;
  sent.lists = handles_.ToSend(request.lists);
  absl::StatusOr<AttendResult> answer = Call(Repeat::kHarmless, sent, options);
  handles_.Answered(sent.lists, answer.status());
  if (!IsListNotKept(answer.status())) return answer;
  CallOptions rest = options;
  rest.timeout = deadline - absl::Now();
  return Call(Repeat::kHarmless, request, rest);
}

StepResults Client::Impl::Send(const std::vector<StepRequest>& steps, const Attempt& attempt) {
  if (const absl::Status patience = CheckAttempt(attempt); !patience.ok()) {
    return StepResultsOf(patience, steps.size());
  }
  auto answer = transport_->Call(StepsRequest{steps}, attempt);
  if (!answer.ok()) answer = Told(answer.status(), attempt);
  return StepResultsOf(std::move(answer), steps.size());
}

// One attempt, in which steps are sent again if the service has forgotten lists of theirs.
StepResults Client::Impl::Try(const std::vector<StepRequest>& steps, const Attempt& attempt) {
  const auto has_handles = [](const auto& step) { return KeptHandles::HasAny(step.lists); };
  if (std::none_of(steps.begin(), steps.end(), has_handles)) return Send(steps, attempt);
  std::vector<StepRequest> sent = steps;
  for (StepRequest& step : sent) step.lists = handles_.ToSend(step.lists);
  StepResults results = Send(sent, attempt);
  std::vector<StepRequest> again;
  std::vector<size_t> index;  // of again[i] in steps
  for (size_t i = 0; i < steps.size(); ++i) {
    handles_.Answered(sent[i].lists, results[i].status());
    if (!IsListNotKept(results[i].status())) continue;
    again.push_back(steps[i]);
    index.push_back(i);
  }
  if (again.empty()) return results;
  StepResults with_data = Send(again, attempt);
  for (size_t i = 0; i < again.size(); ++i) results[index[i]] = std::move(with_data[i]);
  return results;
}

// A batch is tried again as one call, with those of its steps that are worth it. What is malformed
// is not tried at all.
StepResults Client::Impl::Step(absl::Span<const StepRequest> requests, const CallOptions& options) {
  const Attempt attempt = AttemptOf(options);
  const std::vector<absl::Status> checks = CheckSteps(requests);
  StepResults results = StepResultsOf(absl::InternalError("not tried"), requests.size());
  std::vector<StepRequest> left;
  std::vector<size_t> index;  // of left[i] in results
  left.reserve(requests.size());
  index.reserve(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    if (!checks[i].ok()) {
      results[i] = checks[i];
      continue;
    }
    left.push_back(requests[i]);
    index.push_back(i);
    if (left.back().k.tokens != 0) FillKey(&left.back().key, 1);
  }
  if (left.empty()) return results;

  RetryLoop loop(&budget_, Repeat::kHarmless, attempt.deadline, attempt.cancel);
  absl::Status worst;
  do {
    StepResults tried = Try(left, attempt);
    worst = absl::OkStatus();
    size_t kept = 0;
    for (size_t i = 0; i < tried.size(); ++i) {
      const absl::Status status = tried[i].status();
      results[index[i]] = std::move(tried[i]);
      if (!RetryLoop::Worthwhile(status, Repeat::kHarmless)) continue;
      worst = status;
      left[kept] = left[i];
      index[kept++] = index[i];
    }
    left.resize(kept);
    index.resize(kept);
  } while (loop.Again(worst));
  return results;
}

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const ClientOptions& options) {
  ANNULUS_RETURN_IF_ERROR(CheckOptions(options.async_calls_max, options.retry));
  ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<Transport> transport, MakeGrpcTransport(options));
  return std::unique_ptr<Client>(new Client(
      std::make_unique<Impl>(std::move(transport), options.async_calls_max, options.retry)));
}

absl::StatusOr<std::unique_ptr<Client>> Client::InProcess(const InProcessOptions& options) {
  ANNULUS_RETURN_IF_ERROR(CheckOptions(options.async_calls_max, options.retry));
  ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<Transport> transport, MakeInProcessTransport(options));
  return std::unique_ptr<Client>(new Client(
      std::make_unique<Impl>(std::move(transport), options.async_calls_max, options.retry)));
}

absl::StatusOr<ContextInfo> Client::CreateContext(const ContextSpec& spec,
                                                  const CallOptions& call) {
  ANNULUS_RETURN_IF_ERROR(CheckRequest(spec));
  return impl_->Make(spec, call);
}

absl::StatusOr<AppendResult> Client::Append(const AppendRequest& request, const CallOptions& call) {
  ANNULUS_RETURN_IF_ERROR(CheckRequest(request));
  ANNULUS_ASSIGN_OR_RETURN(const AppendCut cut, CutAppend(request));
  AppendRequest keyed = request;
  impl_->FillKey(&keyed.key, static_cast<uint64_t>(cut.pieces()));
  return impl_->Call(Repeat::kHarmless, keyed, call);
}

absl::StatusOr<AttendResult> Client::Attend(const AttendRequest& request, const CallOptions& call) {
  ANNULUS_RETURN_IF_ERROR(CheckRequest(request));
  return impl_->Attend(request, call);
}

absl::StatusOr<SelectResult> Client::Select(const SelectRequest& request, const CallOptions& call) {
  ANNULUS_RETURN_IF_ERROR(CheckRequest(request));
  return impl_->Call(Repeat::kHarmless, request, call);
}

absl::StatusOr<CompressResult> Client::Compress(const CompressRequest& request,
                                                const CallOptions& call) {
  ANNULUS_RETURN_IF_ERROR(CheckRequest(request));
  CompressRequest keyed = request;
  impl_->FillKey(&keyed.key, 1);
  return impl_->Call(Repeat::kHarmless, keyed, call);
}

StepResults Client::Step(absl::Span<const StepRequest> requests, const CallOptions& call) {
  return impl_->Step(requests, call);
}

absl::StatusOr<ContextInfo> Client::Fork(const ForkRequest& request, const CallOptions& call) {
  return impl_->Make(request, call);
}

absl::StatusOr<ContextInfo> Client::Truncate(const TruncateRequest& request,
                                             const CallOptions& call) {
  return impl_->Call(Repeat::kTwice, request, call);
}

absl::Status Client::Release(ContextId context, const CallOptions& call) {
  impl_->leases().Remove(context);
  int attempts = 0;
  const ReleaseRequest request{context};
  const absl::Status status = impl_->Call(Repeat::kHarmless, request, call, &attempts).status();
  // An earlier attempt may have released it, and only its answer was lost.
  return attempts > 1 && absl::IsNotFound(status) ? absl::OkStatus() : status;
}

std::vector<absl::Status> Client::KeepAlive(absl::Span<const ContextId> contexts,
                                            const CallOptions& call) {
  std::vector<absl::Status> renewed;
  for (size_t first = 0; first < contexts.size(); first += kRenewedMax) {
    const absl::Span<const ContextId> part = contexts.subspan(first, kRenewedMax);
    const KeepAliveRequest request{{part.begin(), part.end()}};
    const auto some = RenewedOf(impl_->Call(Repeat::kHarmless, request, call), part.size());
    renewed.insert(renewed.end(), some.begin(), some.end());
  }
  return renewed;
}

absl::StatusOr<ContextInfo> Client::Describe(ContextId context, const CallOptions& call) {
  return impl_->Call(Repeat::kHarmless, DescribeRequest{context}, call);
}

absl::StatusOr<std::vector<ContextInfo>> Client::List(const ListRequest& request,
                                                      const CallOptions& call) {
  ANNULUS_ASSIGN_OR_RETURN(ContextList list, impl_->Call(Repeat::kHarmless, request, call));
  return std::move(list.contexts);
}

absl::StatusOr<ClusterStatus> Client::Status(const CallOptions& call) {
  return impl_->Call(Repeat::kHarmless, StatusRequest(), call);
}

absl::Status Client::AppendAsync(AppendRequest request, CallOptions call,
                                 Completion<AppendResult> done) {
  ANNULUS_RETURN_IF_ERROR(CheckDone(done));
  return impl_->threads().Run([this, request = std::move(request), call = std::move(call),
                               done = std::move(done)]() mutable { done(Append(request, call)); });
}

absl::Status Client::AttendAsync(AttendRequest request, CallOptions call,
                                 Completion<AttendResult> done) {
  ANNULUS_RETURN_IF_ERROR(CheckDone(done));
  return impl_->threads().Run([this, request = std::move(request), call = std::move(call),
                               done = std::move(done)]() mutable { done(Attend(request, call)); });
}

absl::Status Client::StepAsync(std::vector<StepRequest> requests, CallOptions call,
                               absl::AnyInvocable<void(StepResults)> done) {
  ANNULUS_RETURN_IF_ERROR(CheckDone(done));
  return impl_->threads().Run([this, requests = std::move(requests), call = std::move(call),
                               done = std::move(done)]() mutable { done(Step(requests, call)); });
}

ConnectionState Client::connection() const {
  return impl_->transport().connection();
}

}  // namespace annulus
