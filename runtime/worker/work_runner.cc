#include "runtime/worker/work_runner.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "comm/no_exchange.h"
#include "runtime/context/layout.h"
#include "runtime/engine/wire_rows.h"
#include "runtime/worker/merge_point.h"

namespace annulus {

absl::Status WorkRunner::CheckQueryBytes(const wire::WorkItem& item, int64_t elements,
                                         DType dtype) {
  const size_t expected = static_cast<size_t>(elements) * SizeOf(dtype);
  if (item.query_bytes == expected) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("queries of an item: ", item.query_bytes, " bytes; expected ", expected));
}

absl::Status WorkRunner::CheckInTime(const WorkerTask& task) const {
  if (task.cancel != nullptr && task.cancel->load()) {
    return absl::CancelledError("the call was cancelled before it began to compute");
  }
  if (clock_.Now() < task.deadline) return absl::OkStatus();
  return absl::DeadlineExceededError("the call's deadline passed before it began to compute");
}

std::shared_ptr<const BlockSet> WorkRunner::KeysOf(ContextId context, const KvStore::Shard& shard,
                                                   int64_t kv_tokens) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Held& held = held_[context];
  const int64_t blocks = BlocksOf(kv_tokens);
  if (held.blocks != blocks) {
    held.blocks = blocks;
    held.keys = std::make_shared<const BlockSet>(
        shard.layout(0, kv_tokens).Blocks(shard.rank).Intersect(BlockSet::Range(0, blocks)));
  }
  return held.keys;
}

absl::StatusOr<std::shared_ptr<const Plan>> WorkRunner::PlanOf(const wire::WorkItem& item,
                                                               const KvStore::Shard& shard,
                                                               const Pattern& pattern,
                                                               const Stop& stop) {
  const Key key = {static_cast<int64_t>(item.storage_id),
                   static_cast<int64_t>(item.epoch),
                   pattern.id(),
                   static_cast<int64_t>(*item.plan),
                   item.stages,
                   item.q_start,
                   item.q_tokens,
                   item.kv_tokens,
                   item.keys.begin,
                   item.keys.end};
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto* found = plans_.Find(key)) return *found;
  }
  const TokenRange q{item.q_start, item.q_start + item.q_tokens};
  const Problem problem = ProblemOf(shard.spec, shard.layout(item.layer, item.kv_tokens), q,
                                    item.kv_tokens, item.keys, pattern);
  ANNULUS_ASSIGN_OR_RETURN(Plan plan, BuildPlan(*item.plan, problem, item.stages, stop));
  auto shared = std::make_shared<const Plan>(std::move(plan));
  const auto is_of_item = [](const wire::List& list) { return list.number == 0; };
  if (std::any_of(item.lists.begin(), item.lists.end(), is_of_item)) return shared;
  const std::lock_guard<std::mutex> lock(mutex_);
  plans_.Insert(key, shared);
  return shared;
}

// A page that was damaged here must not make a wrong answer elsewhere.
absl::Status WorkRunner::VerifyWhatLeaves(const Plan& plan, int rank, const wire::WorkItem& item) {
  for (const Round& round : plan.rounds()) {
    for (const Transfer& transfer : round.transfers) {
      if (transfer.kind != Transfer::Kind::kKv || transfer.source != rank) continue;
      ANNULUS_RETURN_IF_ERROR(
          store_.Verify(item.storage_id, item.layer, transfer.heads, transfer.blocks));
    }
  }
  return absl::OkStatus();
}

void WorkRunner::Store(const WorkerTask& task, absl::Span<BatchItem> batch) {
  const auto& work = std::get<wire::Work>(task.body);
  std::vector<KvStore::LayerAppend> appends;
  std::vector<BatchItem*> of;
  size_t at = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    const wire::WorkItem& item = work.items[i];
    if (batch[i].status.ok() && item.k_tokens > 0) {
      appends.push_back({item.storage_id,
                         item.layer,
                         {item.start, item.start + item.k_tokens},
                         task.payload.span().subspan(at, item.append_bytes),
                         item.mark,
                         item.horizon});
      of.push_back(&batch[i]);
    }
    at += item.append_bytes + item.query_bytes;
  }
  std::vector<absl::Status> statuses = store_.AppendAll(appends);
  for (size_t i = 0; i < of.size(); ++i) of[i]->status = std::move(statuses[i]);
}

void WorkRunner::ForgetLists(const std::vector<std::shared_ptr<const KeyListData>>& gone) {
  for (const auto& data : gone) {
    bound_.Forget(*data);
    const std::lock_guard<std::mutex> lock(mutex_);
    plans_.EraseIf([&](const auto& plan) { return Uses(plan->problem().pattern, *data); });
  }
}

absl::Status WorkRunner::BindLists(const wire::WorkItem& item, std::vector<NumberedList> made,
                                   const ContextSpec& spec, Kept* kept) {
  // The task outlives what is made of it.
  ANNULUS_ASSIGN_OR_RETURN(std::vector<NumberedList> lists, lists_.Take(item.lists));
  std::move(made.begin(), made.end(), std::back_inserter(lists));
  ANNULUS_ASSIGN_OR_RETURN(kept->pattern, bound_.Bind(*kept->pattern, lists, spec.heads));
  return kept->pattern->CheckLists({item.q_start, item.q_start + item.q_tokens}, item.kv_tokens);
}

// All of the queries of all of this rank's heads, over its own pages.
absl::Status WorkRunner::SetUpAlone(const wire::WorkItem& item, const KvStore::Shard& shard,
                                    const Buffer& queries, BatchItem* to, Kept* kept) {
  const ContextSpec& spec = shard.spec;
  if (item.keys.begin > 0) {
    kept->pattern = std::make_shared<const Pattern>(kept->pattern->KeysFrom(item.keys.begin));
  }
  kept->keys = KeysOf(item.storage_id, shard, item.keys.end);
  const Layout layout = shard.layout(item.layer, item.kv_tokens);
  const std::byte* at = queries.data();
  int64_t elements = 0;
  for (const HeadRange& heads : layout.QueryHeads(shard.rank)) {
    AttendArgs& part = to->parts.emplace_back();
    part.heads = heads;
    part.q = TensorView::Contiguous(at, spec.dtype, item.q_tokens, heads.count, spec.head_dim);
    part.q_ranges = {{item.q_start, item.q_start + item.q_tokens}};
    part.kv_tokens = item.keys.end;
    part.group = spec.heads / spec.kv_heads;
    part.pattern = kept->pattern.get();
    part.keys = kept->keys.get();
    part.into.v_head_dim = spec.v_head_dim;
    elements += part.q.size();
    at += static_cast<size_t>(part.q.size()) * SizeOf(spec.dtype);
  }
  return CheckQueryBytes(item, elements, spec.dtype);
}

// Ranks that have nothing to tell each other do not wait for one another, not even to hear that one
// has failed.
absl::Status WorkRunner::SetUpPlanned(const WorkerTask& task, const wire::WorkItem& item,
                                      const KvStore::Shard& shard, const KvTable& table,
                                      Buffer queries, BatchItem* to, Kept* kept) {
  const Stop stop([&] { return CheckInTime(task); });
  ANNULUS_ASSIGN_OR_RETURN(kept->plan, PlanOf(item, shard, *kept->pattern, stop));
  const Plan& plan = *kept->plan;
  to->parts = DirectPartsOf(plan, shard.rank, queries.data());
  if (!to->parts.empty()) {
    int64_t elements = 0;
    for (const AttendArgs& part : to->parts) elements += part.q.size();
    return CheckQueryBytes(item, elements, shard.spec.dtype);
  }
  ANNULUS_RETURN_IF_ERROR(VerifyWhatLeaves(plan, shard.rank, item));
  if (item.channel != 0) {
    ANNULUS_ASSIGN_OR_RETURN(to->exchange,
                             owner_.open_exchange(item.storage_id, item.channel, shard.rank));
  } else {
    to->exchange = std::make_unique<NoExchange>(shard.rank, plan.world());
  }
  to->ranked = std::make_unique<RankTask>();
  to->ranked->plan = &plan;
  to->ranked->rank = shard.rank;
  to->ranked->q_packed = std::move(queries);
  to->ranked->kv = &table;
  to->ranked->scale = item.scale;
  // The engine and the exchange go by wall time.
  to->ranked->deadline = absl::Now() + (task.deadline - clock_.Now());
  to->ranked->cancel = task.cancel.get();
  to->ranked->turn = TurnOf(task, item);
  return absl::OkStatus();
}

absl::Status WorkRunner::SetUp(const WorkerTask& task, const wire::WorkItem& item, Buffer queries,
                               BatchItem* to, Kept* kept) {
  to->layer = item.layer;
  to->refuses_overflow = item.k_tokens > 0;  // what fails here is taken back everywhere
  if (item.q_tokens == 0) return absl::OkStatus();
  ANNULUS_ASSIGN_OR_RETURN(const KvStore::Shard* shard, store_.Find(item.storage_id));
  if (item.layer < 0 || item.layer >= StoredLayers(shard->spec)) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer: ", item.layer, "; expected one of ", StoredLayers(shard->spec)));
  }
  const int64_t rows = RowsOf(shard->spec, item.layer, item.kv_tokens);
  ANNULUS_ASSIGN_OR_RETURN(const KvTable* table, store_.Table(item.storage_id, item.layer, rows));
  if (item.column_trip.has_value()) return RunColumnTrip(task, item, *shard, queries, to);
  if (item.pattern.empty()) {
    const Pattern& own = store_.PatternOfLayer(item.storage_id, item.layer);
    kept->pattern = std::shared_ptr<const Pattern>(std::shared_ptr<void>(), &own);
  } else {
    ANNULUS_ASSIGN_OR_RETURN(kept->pattern, patterns_.Parse(item.pattern, shard->spec.kv_heads));
  }
  if (item.select.empty() && item.layer >= shard->spec.layers) {
    return absl::InvalidArgumentError("layer: a track's; expected no queries to attend to it");
  }
  if (!item.select.empty()) {
    return Select(task, item, *shard, *kept->pattern, queries, to);
  }
  if (item.chooses) return SetUpChoosing(task, item, *shard, *table, queries, to, kept);
  if (!item.lists.empty()) ANNULUS_RETURN_IF_ERROR(BindLists(item, {}, shard->spec, kept));
  ANNULUS_RETURN_IF_ERROR(
      item.plan.has_value() ? SetUpPlanned(task, item, *shard, *table, std::move(queries), to, kept)
                            : SetUpAlone(item, *shard, queries, to, kept));
  Complete(task, item, *table, to);
  return absl::OkStatus();
}

void WorkRunner::Complete(const WorkerTask& task, const wire::WorkItem& item, const KvTable& table,
                          BatchItem* to) {
  // All of a Work's parts are one batch.
  const ThreadPool::Turn turn = TurnOf(task, std::get<wire::Work>(task.body).items[0]);
  for (AttendArgs& part : to->parts) {
    part.kv = &table;
    part.scale = item.scale;
    part.cancel = task.cancel.get();
    part.turn = turn;
  }
}

TaskOutcome WorkRunner::Run(const WorkerTask& task) {
  const auto& work = std::get<wire::Work>(task.body);
  const absl::Time came = absl::Now();
  const size_t count = work.items.size();
  const absl::Status in_time = CheckInTime(task);
  if (!work.forget_lists.empty()) ForgetLists(lists_.Forget(work.forget_lists));
  std::vector<BatchItem> batch(count);
  for (size_t i = 0; i < count; ++i) {
    const wire::WorkItem& item = work.items[i];
    batch[i].status = in_time.ok() ? owner_.check(item.storage_id, item.epoch) : in_time;
  }
  Store(task, absl::MakeSpan(batch));
  // Once everything is stored, since what a context appends may move the pages of another.
  std::vector<Kept> kept(count);
  size_t at = 0;
  for (size_t i = 0; i < count; ++i) {
    const wire::WorkItem& item = work.items[i];
    at += item.append_bytes;
    if (batch[i].status.ok()) {
      batch[i].status =
          SetUp(task, item, task.payload.Part(at, item.query_bytes), &batch[i], &kept[i]);
    }
    at += item.query_bytes;
  }
  wire::WorkDone done;
  done.request = work.request;
  done.items.resize(count);
  const bool told = owner_.spans && !work.traceparent.empty();
  if (work.trace || told) {
    for (size_t i = 0; i < count; ++i) {
      if (batch[i].ranked == nullptr) continue;
      batch[i].ranked->trace = [&spans = done.items[i].spans](absl::string_view name,
                                                              absl::Time begin, absl::Time end) {
        spans.push_back({"", std::string(name), absl::ToUnixNanos(begin), absl::ToUnixNanos(end)});
      };
    }
  }
  const absl::Time begin = absl::Now();
  Buffer partials = RunBatch(absl::MakeSpan(batch), backend_);
  for (size_t i = 0; i < count; ++i) {
    wire::WorkItemDone& item = done.items[i];
    item.epoch = work.items[i].epoch;
    item.status = std::move(batch[i].status);
    const KvStore::Held held = store_.HeldBy(work.items[i].storage_id);
    item.context_kv_bytes = held.context_bytes;
    item.owner_kv_bytes = held.owner_bytes;
    if (!work.items[i].plan.has_value() && !work.items[i].chooses) continue;
    if (batch[i].exchange != nullptr) {
      const Exchange::Counters moved = batch[i].exchange->counters();
      exchange_bytes_sent_ += moved.bytes_sent;
      exchange_bytes_received_ += moved.bytes_received;
    }
    item.bytes_sent = batch[i].bytes_sent;
    item.bytes_received = batch[i].bytes_received;
    if (const std::optional<ProblemSize>& size = kept[i].size) {
      item.counted = true;
      item.visited_pairs = size->visited_pairs;
      item.work_pairs = size->work_pairs;
    }
    if (!(work.trace || told) || batch[i].parts.empty()) continue;
    item.spans.push_back({"", "attend", absl::ToUnixNanos(begin), absl::ToUnixNanos(absl::Now())});
  }
  if (told) Tell(work, came, done);
  return Hand(task, batch, std::move(done), std::move(partials));
}

// What was noted for the trace alone goes no further.
void WorkRunner::Tell(const wire::Work& work, absl::Time begin, wire::WorkDone& done) const {
  FinishedSpan span;
  const std::optional<TraceContext> parent = ParseTraceparent(work.traceparent);
  if (parent.has_value() && parent->recorded()) {
    span.parent = *parent;
    span.span_id = NewSpanId();
    span.span = {"", "work", absl::ToUnixNanos(begin), absl::ToUnixNanos(absl::Now())};
    span.attributes = {{"annulus.items", absl::StrCat(work.items.size())}};
    for (const wire::WorkItemDone& item : done.items) {
      if (!item.status.ok()) span.failure = absl::StatusCodeToString(item.status.code());
      span.parts.insert(span.parts.end(), item.spans.begin(), item.spans.end());
    }
    owner_.spans(span);
  }
  if (work.trace) return;
  for (wire::WorkItemDone& item : done.items) item.spans.clear();
}

// Hands what was computed to the coordinator, or to where it is merged with other ranks'.
TaskOutcome WorkRunner::Hand(const WorkerTask& task, absl::Span<const BatchItem> batch,
                             wire::WorkDone done, Buffer partials) {
  if (task.merge_point == nullptr) {
    TaskOutcome outcome;
    outcome.request = done.request;
    outcome.messages.push_back(wire::Encode(std::move(done), std::move(partials)));
    return outcome;
  }
  const auto& work = std::get<wire::Work>(task.body);
  OwnPartials own{std::move(done), std::move(partials), {}};
  std::byte* at = own.bytes.data();
  for (size_t i = 0; i < batch.size(); ++i) {
    const wire::WorkItem& item = work.items[i];
    std::vector<PartialView>& views = own.views.emplace_back();
    for (const AttendArgs& part : batch[i].parts) {
      if (!own.done.items[i].status.ok()) break;
      views.push_back(PartialIn(at, part.into.rows, part.into.heads, part.into.v_head_dim));
      at += PartialBytes(part.into.rows, part.into.heads, part.into.v_head_dim);
    }
    own.next.push_back(
        item.merge_into.has_value() ? owner_.address_of(item.storage_id, *item.merge_into) : "");
  }
  return task.merge_point->AddOwn(std::move(own));
}

}  // namespace annulus
