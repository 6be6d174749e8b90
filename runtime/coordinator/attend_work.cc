#include "runtime/coordinator/attend_work.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/attend_args.h"
#include "base/log.h"
#include "base/status.h"
#include "runtime/coordinator/check_tensor.h"
#include "runtime/engine/engine.h"
#include "runtime/store/context_layout.h"

namespace annulus {
namespace {

std::string RequestIdOf(const AttendRequest& request) {
  static std::atomic<uint64_t> made_up = 0;
  return request.request_id.empty() ? absl::StrCat("attend-", ++made_up) : request.request_id;
}

bool SendsReadBlocksAlone(PlanKind kind) {
  return kind == PlanKind::kGroupCast || kind == PlanKind::kPassQ;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const AttendPlanner::Planned>> AttendPlanner::PlanFor(
    const ShardMap& map, const AttendRequest& request, const Stop& stop) {
  if (map.spec.kv_efficient && request.plan.has_value() && !SendsReadBlocksAlone(*request.plan)) {
    return absl::InvalidArgumentError(
        absl::StrCat("plan: ", Name(*request.plan),
                     "; expected group-cast or pass-q: the context is kv_efficient"));
  }
  ANNULUS_ASSIGN_OR_RETURN(const std::shared_ptr<const Pattern> pattern,
                           patterns_.PatternOf(map.retention, request.layer, request.pattern));
  const TokenRange keys = KeysOf(request);
  const Key key = {static_cast<int64_t>(map.context),
                   static_cast<int64_t>(map.epoch),
                   pattern->id(),
                   request.plan.has_value() ? static_cast<int64_t>(*request.plan) : -1,
                   request.q_start,
                   request.q.tokens,
                   request.kv_len,
                   keys.begin,
                   keys.end};
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto* found = plans_.Find(key)) return *found;
  }
  const bool may_grow = map.spec.tokens_expected == 0;
  ANNULUS_RETURN_IF_ERROR(pattern->CheckTokens(request.kv_len, may_grow));
  const int world = map.world;
  const TokenRange q{request.q_start, request.q_start + request.q.tokens};
  const Problem problem = ProblemOf(map.spec, world, q, request.kv_len, keys, *pattern);
  const ClusterModel model =
      shared_ ? SharedBy(cluster_, std::min(world, cluster_.workers_per_node)) : cluster_;
  ANNULUS_ASSIGN_OR_RETURN(Decision decision, Choose(problem, model, request.plan, stop));
  Planned planned{std::move(decision.plan), SizeOf(problem, stop), {}};
  planned.cost = Lightest(decision.candidates, [&](PlanKind kind) {
    if (request.plan.has_value()) return kind == *request.plan;
    return !map.spec.kv_efficient || SendsReadBlocksAlone(kind);
  });
  if (planned.plan.kind() != planned.cost.kind) {
    ANNULUS_ASSIGN_OR_RETURN(planned.plan,
                             BuildPlan(planned.cost.kind, problem, planned.cost.stages, stop));
  }
  ANNULUS_RETURN_IF_ERROR(stop.status());  // before anything of it is kept
  auto shared = std::make_shared<const Planned>(std::move(planned));
  const std::lock_guard<std::mutex> lock(mutex_);
  plans_.Insert(key, shared);
  return shared;
}

AttendWork::AttendWork(const AttendRequest& request, absl::Time deadline, AttendPlanner& planner,
                       const Clock& clock, Stop stop)
    : request_(request),
      request_id_(RequestIdOf(request)),
      begin_(clock.Now()),
      deadline_(deadline),
      planner_(planner),
      clock_(clock),
      stop_(std::move(stop)) {}

void AttendWork::Trace(absl::string_view name, absl::Time begin) {
  if (!request_.trace) return;
  result_.trace.push_back({"coordinator", std::string(name), absl::ToUnixNanos(begin),
                           absl::ToUnixNanos(clock_.Now())});
}

bool AttendWork::TakesPart(int rank) const {
  for (const Step& step : planned_->plan.steps()) {
    for (const Transfer& transfer : step.transfers) {
      if (transfer.source == rank || transfer.destination == rank) return true;
    }
    for (const Compute& compute : step.computes) {
      if (compute.rank == rank) return true;
    }
  }
  return false;
}

absl::StatusOr<PreparedWork> AttendWork::Prepare(const action::Admit& admit) {
  const action::AdmittedItem& item = admit.items.front();
  const ShardMap& map = *item.map;
  const ContextSpec& spec = map.spec;
  absl::Time begin = clock_.Now();
  ANNULUS_RETURN_IF_ERROR(CheckTensor("q", request_.q, spec.heads, spec.head_dim, spec.dtype));
  ANNULUS_RETURN_IF_ERROR(CheckScale(request_.scale));
  if (request_.plan.has_value() && !ParsePlanKind(Name(*request_.plan)).ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("plan: ", static_cast<int>(*request_.plan), "; expected a known kind"));
  }
  ANNULUS_ASSIGN_OR_RETURN(planned_, planner_.PlanFor(map, request_, stop_));
  const Plan& plan = planned_->plan;
  const Problem& problem = plan.problem();
  ANNULUS_RETURN_IF_ERROR(map.retention->CheckReads(request_.layer, item.horizon, problem.pattern,
                                                    problem.q_range(), problem.keys().end, stop_));
  Trace("plan", begin);

  begin = clock_.Now();
  const std::string& pattern = plan.problem().pattern.text();
  wire::Attend attend{admit.call,  map.epoch,         map.storage,     request_.layer,
                      plan.kind(), request_.q.tokens, request_.kv_len, pattern};
  attend.scale =
      request_.scale != 0 ? request_.scale : 1.0f / std::sqrt(static_cast<float>(spec.head_dim));
  attend.time_left = deadline_ - clock_.Now();
  attend.trace = request_.trace;
  attend.stages = plan.stages();
  attend.q_start = request_.q_start;
  attend.keys = problem.keys();

  AttendStats& stats = result_.stats;
  PreparedWork work;
  for (int rank = 0; rank < plan.world(); ++rank) {
    stats.workers.push_back({.worker = map.holders[static_cast<size_t>(rank)].worker});
    if (!TakesPart(rank)) continue;
    ANNULUS_RETURN_IF_ERROR(stop_.status());
    Buffer queries = PackQueries(plan, rank, request_.q);
    stats.bytes_moved += static_cast<int64_t>(queries.size());
    work.messages.push_back({rank, wire::Encode(attend, std::move(queries))});
  }
  for (const WorkerLoad& load : planned_->cost.workers) {
    stats.workers.at(load.worker).work_pairs = load.work_pairs;
  }
  stats.plan = std::string(Name(plan.kind()));
  stats.visited_pairs = planned_->size.visited_pairs;
  stats.work_pairs = planned_->size.work_pairs;
  stats.planned_bytes = plan.BytesTotal();
  result_.epoch = map.epoch;
  merged_ = Partial(request_.q.tokens, spec.heads, spec.v_head_dim);
  Trace("pack queries", begin);
  return work;
}

absl::Status AttendWork::OnAnswer(RankAnswer answer) {
  const absl::Time begin = clock_.Now();
  ANNULUS_RETURN_IF_ERROR(MergeAnswer(planned_->plan, answer.rank, answer.payload, merged_.view()));
  auto& done = std::get<wire::Done>(answer.done);
  WorkerShare& share = result_.stats.workers.at(answer.rank);
  share.bytes_sent = done.bytes_sent;
  share.bytes_received = done.bytes_received;
  result_.stats.bytes_moved += done.bytes_sent;
  for (TraceSpan& span : done.spans) {
    span.process = absl::StrCat("worker ", share.worker);
    result_.trace.push_back(std::move(span));
  }
  Trace(absl::StrCat("merge worker ", share.worker), begin);
  return absl::OkStatus();
}

absl::StatusOr<AttendResult> AttendWork::TakeResult(const absl::Status& ended) && {
  absl::Status status = ended;
  if (status.ok()) {
    const absl::Time begin = clock_.Now();
    if (const std::optional<Overflow> overflow = EndRows(merged_.view())) {
      status = absl::InvalidArgumentError(absl::StrCat("context ", request_.context, ", layer ",
                                                       request_.layer, ": ",
                                                       OverflowError(*overflow).message()));
    }
    Trace("finalise", begin);
  }
  Trace(absl::StrCat("attend ", request_id_), begin_);
  AttendStats& stats = result_.stats;
  stats.elapsed_s = absl::ToDoubleSeconds(clock_.Now() - begin_);
  Log(LogLevel::kDebug, "attend",
      {{"request", request_id_},
       {"context", request_.context},
       {"layer", request_.layer},
       {"code", absl::StatusCodeToString(status.code())},
       {"plan", stats.plan},
       {"bytes", stats.bytes_moved},
       {"elapsed_s", stats.elapsed_s}});
  ANNULUS_RETURN_IF_ERROR(status);
  result_.out = std::move(merged_).TakeOut();
  result_.lse = std::move(merged_).TakeLse();
  return std::move(result_);
}

}  // namespace annulus
