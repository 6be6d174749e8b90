#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/cli/attend.h"
#include "runtime/cli/progress.h"
#include "runtime/cli/shared_options.h"
#include "runtime/client/client.h"

namespace annulus {
namespace {

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
  return spec;
}

absl::Status Upload(Client& client, ContextId context, const AttendInputs& inputs,
                    const Console& console) {
  Progress progress(console, "upload");
  CallOptions call;
  call.progress = [&](int64_t done, int64_t all) { progress.Show(done, all); };
  AppendRequest request;
  request.context = context;
  request.k = inputs.k.view();
  request.v = inputs.v_view();
  return client.Append(request, call).status();
}

absl::StatusOr<AttendOutcome> AttendIn(Client& client, ContextId context, const AttendFlags& flags,
                                       const AttendInputs& inputs, const Console& console) {
  ANNULUS_RETURN_IF_ERROR(Upload(client, context, inputs, console));
  AttendRequest request;
  request.context = context;
  request.kv_len = inputs.problem.kv_tokens;
  request.q_start = inputs.problem.kv_tokens - inputs.problem.q_tokens;
  request.q = inputs.q.view();
  request.pattern = flags.pattern;
  request.plan = flags.plan;
  request.scale = inputs.scale;
  AttendOutcome outcome;
  outcome.report = ReportOf(flags, inputs);
  std::vector<double> elapsed_s;
  for (int i = 0; i < flags.repeat; ++i) {
    const absl::Time begin = absl::Now();
    ANNULUS_ASSIGN_OR_RETURN(AttendResult result, client.Attend(request));
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
    return absl::InvalidArgumentError("--scale is 0, expected another number with --endpoint");
  }
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client,
                           ConnectTo(*flags.endpoint, flags.upload));
  ANNULUS_ASSIGN_OR_RETURN(const ClusterStatus status, client->Status());
  ANNULUS_ASSIGN_OR_RETURN(const ContextInfo context,
                           client->CreateContext(SpecOf(flags, inputs.problem)));
  absl::StatusOr<AttendOutcome> outcome = AttendIn(*client, context.id, flags, inputs, console);
  const absl::Status released = client->Release(context.id);
  ANNULUS_RETURN_IF_ERROR(outcome.status());
  ANNULUS_RETURN_IF_ERROR(released);
  for (const WorkerStatus& worker : status.workers) {
    // "cpu (AVX2)": the name without what it chose on its machine.
    if (worker.state == "ready") {
      outcome->report.backend = worker.backend.substr(0, worker.backend.find(' '));
    }
  }
  return outcome;
}

}  // namespace annulus
