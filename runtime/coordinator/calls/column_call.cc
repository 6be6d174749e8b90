#include "runtime/coordinator/calls/column_call.h"

#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/attend_args.h"
#include "base/status.h"
#include "runtime/context/check_tensor.h"
#include "runtime/context/layout.h"
#include "runtime/identity/peer_name.h"
#include "runtime/limits.h"

namespace annulus {
namespace {

// The name of the list that is made.
constexpr char kKeptName[] = "kept";

absl::Status Bad(absl::string_view field, int64_t value, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, "; expected ", expected));
}

absl::Status CheckContexts(const CompressRequest& request, const ContextSpec& from,
                           const ContextSpec& into) {
  if (request.into == request.context) {
    return absl::InvalidArgumentError("into: the context itself; expected another one");
  }
  if (request.layer >= from.layers || request.layer >= into.layers) {
    return Bad("layer", request.layer, "a layer of both contexts, and no track's");
  }
  if (from.kv_efficient) {
    return absl::InvalidArgumentError(
        "context: kv_efficient, which may have let go of what queries vote for; expected another");
  }
  const bool alike = from.kv_heads == into.kv_heads && from.head_dim == into.head_dim &&
                     from.v_head_dim == into.v_head_dim && from.dtype == into.dtype &&
                     from.v_is_k_prefix == into.v_is_k_prefix;
  if (alike) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "into: other KV heads, dims or dtype than those of the context; expected the same");
}

}  // namespace

float ColumnQuestion::ScaleFor(const ContextSpec& spec) const {
  return scale != 0 ? scale : 1.0f / std::sqrt(static_cast<float>(spec.head_dim));
}

request::Work ColumnCall::request() const {
  request::WorkItem ask;
  ask.context = question_.context;
  ask.layer = question_.layer;
  ask.start = question_.kv_len;
  ask.q_tokens = question_.q.tokens;
  ask.kind = request::WorkItem::Kind::kAttend;
  ask.q_start = question_.q_start;
  ask.keys = {0, question_.kv_len};
  ask.truncations = work_.truncations;
  return {.items = {ask}};
}

absl::Status ColumnCall::Begin(const ShardMap& map) {
  const ContextSpec& spec = map.spec;
  const TensorView& q = question_.q;
  ANNULUS_RETURN_IF_ERROR(CheckTensor("q", q, spec.heads, spec.head_dim, spec.dtype));
  work_.pass.emplace(spec, map.layout(question_.layer, question_.kv_len),
                     TokenRange{question_.q_start, question_.q_start + q.tokens}, question_.kv_len);
  ANNULUS_RETURN_IF_ERROR(work_.pass->Check());
  if (work_.weights) ANNULUS_RETURN_IF_ERROR(work_.pass->CheckWeights(*work_.weights));
  work_.merge.emplace(*work_.pass);
  return absl::OkStatus();
}

Message ColumnCall::Pack(const action::Admit& admit, int rank) const {
  const ShardMap& map = *admit.items[0].map;
  Buffer asked = work_.merge->Ask(rank, trip_, question_.q);
  wire::Work work;
  work.request = admit.call;
  work.time_left = call_.deadline - clock_.Now();
  work.traceparent = ToTraceparent(call_.trace);
  work.tenant = NumberOf(call_.caller);
  wire::WorkItem& item = work.items.emplace_back();
  item.epoch = map.epoch;
  item.storage_id = map.storage_id;
  item.layer = question_.layer;
  item.q_start = question_.q_start;
  item.q_tokens = question_.q.tokens;
  item.kv_tokens = question_.kv_len;
  item.keys = {0, question_.kv_len};
  item.scale = question_.ScaleFor(map.spec);
  item.query_bytes = asked.size();
  item.column_trip = trip_;
  if (trip_ == ColumnTrip::kRows) item.lists.push_back({kKeptName, work_.merge->kept()});
  return wire::Encode(std::move(work), std::move(asked));
}

// The layout follows from the spec and the number of ranks, which a context keeps for life.
absl::StatusOr<PreparedCall> ColumnCall::Prepare(const action::Admit& admit) {
  PreparedCall prepared;
  if (!admit.items[0].live()) return prepared;
  const ShardMap& map = *admit.items[0].map;
  if (trip_ == ColumnTrip::kSums) ANNULUS_RETURN_IF_ERROR(Begin(map));
  for (int i = 0; i < map.world; ++i) {
    const int rank = map.holders[static_cast<size_t>(i)].rank;
    if (!work_.pass->TakesPart(rank)) continue;
    prepared.messages.push_back({i, Pack(admit, rank)});
    prepared.bytes += static_cast<int64_t>(work_.pass->AskedBytes(rank, trip_)) +
                      work_.merge->AnswerBytes(rank, trip_);
  }
  return prepared;
}

absl::Status ColumnCall::OnAnswer(ShareAnswer answer) {
  if (!answer.done.items.at(0).status.ok()) return absl::OkStatus();
  return work_.merge->Add(answer.rank, trip_, answer.payload.span());
}

absl::StatusOr<action::ItemEnd> RunColumnTrip(const ColumnQuestion& question, ColumnTrip trip,
                                              const CallContext& call, const Clock& clock,
                                              RunTrip run_trip, ColumnWork* work) {
  ColumnCall column(question, trip, call, clock, work);
  ANNULUS_ASSIGN_OR_RETURN(action::Finish finish, run_trip(column));
  ANNULUS_RETURN_IF_ERROR(finish.items.at(0).status);
  work->truncations = finish.items[0].truncations;
  if (trip == ColumnTrip::kSums) ANNULUS_RETURN_IF_ERROR(work->merge->EndSums());
  return std::move(finish.items[0]);
}

absl::StatusOr<CompressResult> Compress(const CompressRequest& request, const CallContext& call,
                                        CallPlanner& planner, const Clock& clock, LookAt look,
                                        RunTrip run_trip, RunCall run) {
  ANNULUS_ASSIGN_OR_RETURN(const ShardMapPtr from, look(request.context));
  ANNULUS_ASSIGN_OR_RETURN(const ShardMapPtr into, look(request.into));
  ANNULUS_RETURN_IF_ERROR(CheckContexts(request, from->spec, into->spec));
  ANNULUS_RETURN_IF_ERROR(CheckScale(request.scale));
  const ColumnQuestion question{request.context, request.layer, request.q_start,
                                request.kv_len,  request.q,     request.scale};
  ColumnWork work;
  for (const ColumnTrip trip : kCompressTrips) {
    ANNULUS_RETURN_IF_ERROR(RunColumnTrip(question, trip, call, clock, run_trip, &work).status());
    if (trip == ColumnTrip::kVotes) work.merge->Choose(request.rule);
  }
  AppendRequest append;
  append.context = request.into;
  append.layer = request.layer;
  append.start = request.start;
  append.k = work.merge->k();
  if (work.merge->v().tokens() > 0) append.v = work.merge->v();
  append.key = request.key;
  BatchCall batch({CallItem(append)}, call, planner, clock);
  ANNULUS_ASSIGN_OR_RETURN(const action::Finish finish, run(batch));
  ANNULUS_ASSIGN_OR_RETURN(const AppendResult appended, AppendResultOf(finish));
  return CompressResult{appended.epoch,
                        appended.tokens,
                        {kKeptName, std::make_shared<const KeyListData>(work.merge->kept())}};
}

}  // namespace annulus
