#include "runtime/coordinator/calls/call_planner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/context/layout.h"

namespace annulus {
namespace {

bool SendsReadBlocksAlone(PlanKind kind) {
  return kind == PlanKind::kGroupCast || kind == PlanKind::kPassQ;
}

absl::Status CheckKind(const ContextSpec& spec, PlanKind kind) {
  if (!ParsePlanKind(Name(kind)).ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("plan: ", static_cast<int>(kind), "; expected a known kind"));
  }
  if (!spec.kv_efficient || SendsReadBlocksAlone(kind)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "plan: ", Name(kind), "; expected group-cast or pass-q: the context is kv_efficient"));
}

void NoteParts(Planned* planned) {
  planned->takes_part.resize(static_cast<size_t>(planned->plan.world()));
  const auto take = [&](int rank) {
    if (rank != kCaller) planned->takes_part[static_cast<size_t>(rank)] = true;
  };
  for (const Round& round : planned->plan.rounds()) {
    for (const Transfer& transfer : round.transfers) {
      take(transfer.source);
      take(transfer.destination);
      planned->exchanges |= transfer.source != kCaller && transfer.destination != kCaller;
    }
    for (const Compute& compute : round.computes) take(compute.rank);
  }
}

// In a pass-q a rank's partial goes to one place, in one transfer or more.
void NoteMerging(Planned* planned) {
  if (!planned->exchanges) return;
  planned->merging.resize(static_cast<size_t>(planned->plan.world()));
  for (const Round& round : planned->plan.rounds()) {
    for (const Transfer& transfer : round.transfers) {
      if (transfer.kind != Transfer::Kind::kPartial || transfer.destination == kCaller) continue;
      MergePlace& source = planned->merging[static_cast<size_t>(transfer.source)];
      if (std::exchange(source.into, transfer.destination) != kCaller) continue;
      ++planned->merging[static_cast<size_t>(transfer.destination)].from;
    }
  }
}

// The documents of a context with a known end are those of the tokens that it has, or of all that
// it will have.
absl::Status CheckDocuments(const Pattern& pattern, const ContextSpec& spec, int64_t kv_len) {
  if (spec.tokens_expected == 0) return absl::OkStatus();
  if (pattern.CheckTokens(spec.tokens_expected).ok()) return absl::OkStatus();
  return pattern.CheckTokens(kv_len);
}

// The whole blocks in which these tokens are.
TokenRange WholeBlocks(TokenRange tokens) {
  return {tokens.begin / kBlockTokens * kBlockTokens, BlocksOf(tokens.end) * kBlockTokens};
}

}  // namespace

absl::StatusOr<Planned> CallPlanner::PlanStep(const ShardMap& map, TokenRange q,
                                              const Pattern& pattern, const Stop& stop) const {
  const Problem problem = ProblemOf(map.spec, map.layout(0, q.end), q, q.end, {0, q.end}, pattern);
  ANNULUS_ASSIGN_OR_RETURN(Plan plan, BuildPlan(PlanKind::kPassQ, problem, kStagesDefault, stop));
  return Planned{std::move(plan)};
}

absl::StatusOr<Planned> CallPlanner::PlanAttend(const ShardMap& map, const request::WorkItem& ask,
                                                const Pattern& pattern,
                                                std::optional<PlanKind> kind,
                                                const Stop& stop) const {
  const Problem problem = ProblemOf(map.spec, map.layout(ask.layer, ask.kv_len()), ask.queries(),
                                    ask.kv_len(), ask.keys, pattern);
  const ClusterModel model =
      shared_ ? SharedBy(cluster_, std::min(map.world, cluster_.workers_per_node)) : cluster_;
  ANNULUS_ASSIGN_OR_RETURN(Decision decision, Choose(problem, model, kind, stop));
  Planned planned{std::move(decision.plan), SizeOf(problem, stop)};
  planned.cost = Lightest(decision.candidates, [&](PlanKind candidate) {
    if (kind.has_value()) return candidate == *kind;
    return !map.spec.kv_efficient || SendsReadBlocksAlone(candidate);
  });
  if (planned.plan.kind() != planned.cost.kind) {
    ANNULUS_ASSIGN_OR_RETURN(planned.plan,
                             BuildPlan(planned.cost.kind, problem, planned.cost.stages, stop));
  }
  return planned;
}

CallPlanner::Key CallPlanner::KeyOf(const ShardMap& map, const request::WorkItem& ask,
                                    const Pattern& pattern, std::optional<PlanKind> kind,
                                    TokenRange q) {
  Key key = {static_cast<int64_t>(map.context),
             static_cast<int64_t>(map.epoch),
             pattern.id(),
             kind.has_value() ? static_cast<int64_t>(*kind) : -1,
             q.begin,
             q.end};
  if (ask.kind == request::WorkItem::Kind::kStep) return key;
  key[6] = ask.kv_len();
  key[7] = ask.keys.begin;
  key[8] = ask.keys.end;
  return key;
}

std::shared_ptr<const Planned> CallPlanner::Recall(const ShardMap& map,
                                                   const request::WorkItem& ask,
                                                   const std::string& asked,
                                                   std::optional<PlanKind> kind) {
  const std::shared_ptr<const Pattern> pattern = patterns_.Recall(map.retention, ask.layer, asked);
  if (pattern == nullptr) return nullptr;
  const Key key = KeyOf(map, ask, *pattern, kind, ask.queries());
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto* found = of_attends_.Find(key);
  return found == nullptr ? nullptr : *found;
}

absl::Status CallPlanner::Resolve(const std::string& tenant, std::vector<CallList>* lists) {
  std::vector<std::shared_ptr<const KeyListData>> gone;
  const absl::Status status = lists_.Resolve(tenant, lists, &gone);
  for (const auto& data : gone) {
    bound_.Forget(*data);
    const auto uses = [&](const PlannedPtr& planned) {
      return Uses(planned->plan.problem().pattern, *data);
    };
    const std::lock_guard<std::mutex> lock(mutex_);
    of_attends_.EraseIf(uses);
    of_steps_.EraseIf(uses);
  }
  return status;
}

std::vector<NumberedList> CallPlanner::Numbered(const std::vector<CallList>& lists) const {
  std::vector<NumberedList> numbered;
  numbered.reserve(lists.size());
  for (const CallList& list : lists) {
    const uint64_t number = list.data == nullptr ? 0 : lists_.NumberOf(*list.data);
    numbered.push_back({list.name, list.data, number});
  }
  return numbered;
}

absl::StatusOr<std::shared_ptr<const Planned>> CallPlanner::PlanFor(
    const ShardMap& map, const request::WorkItem& ask, const std::string& asked,
    const std::vector<CallList>& lists, std::optional<PlanKind> kind, const Stop& stop) {
  if (kind.has_value()) ANNULUS_RETURN_IF_ERROR(CheckKind(map.spec, *kind));
  ANNULUS_ASSIGN_OR_RETURN(std::shared_ptr<const Pattern> pattern,
                           patterns_.PatternOf(map.retention, ask.layer, asked));
  const std::vector<NumberedList> numbered = Numbered(lists);
  if (!lists.empty()) {
    ANNULUS_ASSIGN_OR_RETURN(pattern, bound_.Bind(*pattern, numbered, map.spec.heads));
  }
  ANNULUS_RETURN_IF_ERROR(CheckDocuments(*pattern, map.spec, ask.kv_len()));
  ANNULUS_RETURN_IF_ERROR(pattern->CheckLists(ask.queries(), ask.kv_len()));
  const bool is_step = ask.kind == request::WorkItem::Kind::kStep;
  const TokenRange q = is_step ? WholeBlocks(ask.queries()) : ask.queries();
  const Key key = KeyOf(map, ask, *pattern, kind, q);
  auto& plans = is_step ? of_steps_ : of_attends_;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto* found = plans.Find(key)) return *found;
  }
  ANNULUS_ASSIGN_OR_RETURN(Planned planned, is_step ? PlanStep(map, q, *pattern, stop)
                                                    : PlanAttend(map, ask, *pattern, kind, stop));
  ANNULUS_RETURN_IF_ERROR(stop.status());  // before anything of it is kept
  NoteParts(&planned);
  if (is_step) NoteMerging(&planned);
  auto shared = std::make_shared<const Planned>(std::move(planned));
  if (!AllAreKept(numbered)) return shared;
  const std::lock_guard<std::mutex> lock(mutex_);
  plans.Insert(key, shared);
  return shared;
}

}  // namespace annulus
