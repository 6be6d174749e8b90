#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/client.h"
#include "base/status.h"
#include "runtime/cli/attend.h"
#include "runtime/cli/options/connect.h"
#include "runtime/cli/report/progress.h"
#include "runtime/cli/stop_signals.h"

namespace annulus {
namespace {

// A service that does not answer for so long is gone, and the context with it.
constexpr absl::Duration kReleaseTimeout = absl::Seconds(10);
// The context serves this command alone, which renews it while it lives: if it is killed, its KV is
// soon free again.
constexpr double kLeaseS = 60;

ContextSpec SpecOf(const AttendFlags& flags, const ProblemFlags& problem) {
  ContextSpec spec;
  spec.heads = static_cast<int>(problem.heads);
  spec.kv_heads = static_cast<int>(problem.kv_heads);
  spec.head_dim = static_cast<int>(problem.head_dim);
  spec.v_head_dim = static_cast<int>(problem.v_head_dim);
  spec.v_is_k_prefix = problem.v_is_k_prefix;
  spec.dtype = problem.dtype;
  spec.placement = flags.kv_placement;
  spec.partition = problem.placement;
  spec.tokens_expected = problem.kv_tokens;
  spec.lease = kLeaseS;
  return spec;
}

// A context made for one attend. It is given back on every way out, exceptions too.
class OwnContext {
 public:
  OwnContext(Client* client, ContextId id, CancelToken cancel)
      : client_(client), id_(id), cancel_(std::move(cancel)) {}
  ~OwnContext() {
    if (client_ != nullptr) (void)Release();
  }
  OwnContext(const OwnContext&) = delete;
  OwnContext& operator=(const OwnContext&) = delete;

  ContextId id() const { return id_; }
  absl::Status Release() {
    return std::exchange(client_, nullptr)
        ->Release(id_, {.timeout = kReleaseTimeout, .cancel = cancel_});
  }

 private:
  Client* client_;  // null once it is given back
  const ContextId id_;
  const CancelToken cancel_;
};

absl::Status Upload(Client& client, ContextId context, const AttendInputs& inputs,
                    const Console& console, const CancelToken& cancel) {
  Progress progress(console, "upload");
  CallOptions call;
  call.cancel = cancel;
  call.progress = [&](int64_t done, int64_t all) { progress.Show(done, all); };
  AppendRequest request;
  request.context = context;
  request.k = inputs.k.view();
  request.v = inputs.v_view();
  return client.Append(request, call).status();
}

absl::StatusOr<AttendOutcome> AttendIn(Client& client, ContextId context, const AttendFlags& flags,
                                       const AttendInputs& inputs, const Console& console,
                                       const CancelToken& cancel) {
  ANNULUS_RETURN_IF_ERROR(Upload(client, context, inputs, console, cancel));
  AttendRequest request;
  request.context = context;
  request.kv_len = inputs.problem.kv_tokens;
  const ProblemFlags& problem = inputs.problem;
  request.q_start = problem.q_start.value_or(problem.kv_tokens - problem.q_tokens);
  if (problem.keys.has_value()) {
    request.keys_begin = problem.keys->begin;
    request.keys_end = problem.keys->end;
  }
  request.q = inputs.q.view();
  request.pattern = flags.pattern;
  for (const NamedList& list : problem.lists) {
    request.lists.push_back({list.name, list.list->shared_data(), NewListHandle()});
  }
  request.plan = flags.plan;
  request.scale = inputs.scale;
  request.sinks = flags.sinks;
  AttendOutcome outcome;
  outcome.report = ReportOf(flags, inputs);
  std::vector<double> elapsed_s;
  for (int i = 0; i < flags.repeat; ++i) {
    const absl::Time begin = absl::Now();
    ANNULUS_ASSIGN_OR_RETURN(AttendResult result, client.Attend(request, {.cancel = cancel}));
    elapsed_s.push_back(absl::ToDoubleSeconds(absl::Now() - begin));
    outcome.out = std::move(result.out);
    outcome.lse = std::move(result.lse);
    outcome.report.plan = result.stats.plan;
    outcome.report.workers = static_cast<int>(result.stats.workers.size());
    outcome.report.visited_pairs = result.stats.visited_pairs;
    outcome.report.bytes_moved = result.stats.bytes_moved;
    outcome.report.planned_bytes = result.stats.planned_bytes;
  }
  outcome.report.elapsed_s = MedianOf(std::move(elapsed_s));
  return outcome;
}

}  // namespace

absl::StatusOr<AttendOutcome> AttendRemotely(const AttendFlags& flags, const AttendInputs& inputs,
                                             const Console& console) {
  if (inputs.scale == 0) {
    // On the wire 0 asks for the default.
    return absl::InvalidArgumentError("--scale: 0; expected another number with --endpoint");
  }
  StopSignals stop;  // before the client's threads
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client,
                           ConnectTo(*flags.endpoint, flags.security, flags.upload));
  ANNULUS_ASSIGN_OR_RETURN(const ClusterStatus status, client->Status());
  stop.Hold();
  ANNULUS_ASSIGN_OR_RETURN(
      const ContextInfo info,
      client->CreateContext(SpecOf(flags, inputs.problem), {.cancel = stop.second()}));
  OwnContext context(client.get(), info.id, stop.second());
  absl::StatusOr<AttendOutcome> outcome =
      AttendIn(*client, context.id(), flags, inputs, console, stop.first());
  const absl::Status released = context.Release();
  if (stop.signal() != 0) {
    outcome = absl::CancelledError(
        absl::StrCat("ended by signal ", stop.signal(), " (", strsignal(stop.signal()), ")"));
  }
  // A service that is gone has nothing to give back any more, or tells so itself.
  if (!released.ok() && !absl::IsNotFound(released)) {
    const absl::Status& first = outcome.ok() ? released : outcome.status();
    return absl::Status(
        first.code(),
        absl::StrCat(first.message(), "; its context stays: annulus release --endpoint ",
                     *flags.endpoint, " ", context.id()));
  }
  ANNULUS_RETURN_IF_ERROR(outcome.status());
  for (const WorkerStatus& worker : status.workers) {
    // "cpu (AVX2)": the name without what it chose on its machine.
    if (worker.state == Name(WorkerState::kReady)) {
      outcome->report.backend = worker.backend.substr(0, worker.backend.find(' '));
    }
  }
  return outcome;
}

}  // namespace annulus
