#include "runtime/worker/task_executor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "base/stop.h"
#include "comm/no_exchange.h"
#include "runtime/store/append_cut.h"
#include "runtime/store/context_layout.h"

namespace annulus {
namespace {

using Lock = std::lock_guard<std::mutex>;

}  // namespace

TaskExecutor::TaskExecutor(std::unique_ptr<Backend> backend, Fabric& fabric, const Clock& clock,
                           Options options)
    : backend_(std::move(backend), clock),
      fabric_(fabric),
      clock_(clock),
      on_exchange_(std::move(options.on_exchange)),
      store_(options.kv_bytes_limit, options.kv_in_host_memory ? HostMemory() : backend_.memory()),
      steps_(store_, backend_) {}

TaskOutcome TaskExecutor::RunStep(const WorkerTask& task) {
  const auto& step = std::get<wire::Step>(task.body);
  const absl::Status in_time = CheckInTime(task);
  TaskOutcome outcome;
  outcome.request = step.request;
  outcome.messages.push_back(steps_.Run(task, [&](ContextId context, uint64_t epoch) {
    return in_time.ok() ? CheckEpoch(context, epoch) : in_time;
  }));
  ++steps_run_;
  return outcome;
}

TaskOutcome TaskExecutor::Run(WorkerTask task) {
  if (std::holds_alternative<wire::Step>(task.body)) return RunStep(task);
  if (std::holds_alternative<wire::Inventory>(task.body)) return TakeInventory();
  wire::Done done;
  ContextId context = 0;
  Buffer answer;
  std::vector<TraceSpan> spans;
  const auto echo = [&](const auto& body) {
    done.request = body.request;
    done.epoch = body.epoch;
    context = body.context;
  };
  if (const auto* open = std::get_if<wire::Open>(&task.body)) {
    echo(*open);
    done.status = Open(*open);
  } else if (const auto* append = std::get_if<wire::Append>(&task.body)) {
    echo(*append);
    done.status = Append(*append, task.payload);
    ++appends_;
  } else if (const auto* release = std::get_if<wire::Release>(&task.body)) {
    echo(*release);
    done.status = Release(*release);
  } else if (const auto* truncate = std::get_if<wire::Truncate>(&task.body)) {
    echo(*truncate);
    done.status = Truncate(*truncate);
  } else if (const auto* fork = std::get_if<wire::Fork>(&task.body)) {
    echo(*fork);
    done.status = Fork(*fork);
  } else if (const auto* trim = std::get_if<wire::Trim>(&task.body)) {
    // A context that was never opened here has nothing to forget.
    (void)store_.Trim(trim->context, trim->layer, trim->tokens);
  } else if (const auto* resume = std::get_if<wire::Resume>(&task.body)) {
    echo(*resume);
    done.status = Resume(*resume);
  } else if (const auto* read = std::get_if<wire::Read>(&task.body)) {
    echo(*read);
    absl::StatusOr<Buffer> rows = Read(*read);
    done.status = rows.status();
    if (rows.ok()) answer = *std::move(rows);
  } else if (const auto* attend = std::get_if<wire::Attend>(&task.body)) {
    echo(*attend);
    absl::StatusOr<RankResult> result = Attend(*attend, task, &spans);
    done.status = result.status();
    if (result.ok()) {
      done.bytes_sent = result->bytes_sent;
      done.bytes_received = result->bytes_received;
      answer = std::move(result->answer_packed);
    }
    ++attends_;
  }
  TaskOutcome outcome;
  outcome.request = done.request;
  if (done.request == 0) return outcome;
  done.spans = std::move(spans);
  done.context_kv_bytes = store_.ContextBytes(context);
  outcome.messages.push_back(wire::Encode(std::move(done), std::move(answer)));
  return outcome;
}

absl::Status TaskExecutor::CheckInTime(const WorkerTask& task) const {
  if (task.cancel->load())
    return absl::CancelledError("the call was cancelled before it began to compute");
  if (clock_.Now() < task.deadline) return absl::OkStatus();
  return absl::DeadlineExceededError("the call's deadline passed before it began to compute");
}

absl::Status TaskExecutor::CheckEpoch(ContextId context, uint64_t epoch) const {
  const Lock lock(mutex_);
  const auto found = opened_.find(context);
  if (found == opened_.end()) {
    return absl::NotFoundError(absl::StrCat("context ", context, " is not held here"));
  }
  if (found->second.epoch != epoch) {
    return absl::AbortedError(absl::StrCat("epoch is ", epoch, ", but context ", context,
                                           " is held at epoch ", found->second.epoch));
  }
  return absl::OkStatus();
}

absl::Status TaskExecutor::Open(const wire::Open& open) {
  ANNULUS_RETURN_IF_ERROR(
      store_.Open(open.context, open.spec, static_cast<int>(open.addresses.size()), open.rank));
  const Lock lock(mutex_);
  opened_[open.context] = {open.epoch, open.addresses, open.copies, open.serves};
  return absl::OkStatus();
}

absl::Status TaskExecutor::Append(const wire::Append& append, const Buffer& packed) {
  ANNULUS_RETURN_IF_ERROR(CheckEpoch(append.context, append.epoch));
  return store_.Append(append.context, append.layer, {append.start, append.start + append.tokens},
                       packed.span(), append.mark, append.horizon);
}

absl::Status TaskExecutor::Truncate(const wire::Truncate& truncate) {
  ANNULUS_RETURN_IF_ERROR(CheckEpoch(truncate.context, truncate.epoch));
  return store_.Truncate(truncate.context, truncate.tokens);
}

absl::Status TaskExecutor::Fork(const wire::Fork& fork) {
  ANNULUS_RETURN_IF_ERROR(CheckEpoch(fork.parent, fork.epoch));
  ANNULUS_RETURN_IF_ERROR(store_.Fork(fork.parent, fork.context, fork.tokens));
  const Lock lock(mutex_);
  opened_[fork.context] = opened_.at(fork.parent);
  opened_[fork.context].serves = fork.context;
  return absl::OkStatus();
}

TaskOutcome TaskExecutor::TakeInventory() const {
  TaskOutcome outcome;
  outcome.inventory = true;
  const Lock lock(mutex_);
  for (const ContextId id : store_.ContextIds()) {
    const KvStore::Shard& shard = **store_.Find(id);
    const Opened& opened = opened_.at(id);
    outcome.messages.push_back(wire::Encode(wire::Inventory{
        opened.epoch, id, shard.spec, shard.rank, opened.addresses, store_.Layers(id),
        store_.ContextBytes(id), opened.copies, opened.serves, opened.tentative}));
  }
  return outcome;
}

// If it cannot be carried out, the context stays at its old epoch, and calls at the new one fail.
absl::Status TaskExecutor::Resume(const wire::Resume& resume) {
  ANNULUS_ASSIGN_OR_RETURN(const KvStore::Shard* shard, store_.Find(resume.context));
  if (resume.addresses.size() != static_cast<size_t>(shard->world)) {
    return absl::FailedPreconditionError("the context has other ranks");
  }
  ANNULUS_RETURN_IF_ERROR(store_.GoBack(resume.context, resume.layers));
  const Lock lock(mutex_);
  opened_[resume.context] = {resume.epoch, resume.addresses, resume.copies, resume.serves,
                             resume.tentative};
  return absl::OkStatus();
}

absl::StatusOr<Buffer> TaskExecutor::Read(const wire::Read& read) {
  ANNULUS_RETURN_IF_ERROR(CheckEpoch(read.context, read.epoch));
  ANNULUS_ASSIGN_OR_RETURN(const KvStore::Shard* shard, store_.Find(read.context));
  const TokenRange tokens{read.start, read.start + read.tokens};
  const Layout layout = LayoutOf(shard->spec, shard->world, tokens.end);
  Buffer rows(static_cast<size_t>(AppendBytes(shard->spec, layout, shard->rank, tokens)));
  ANNULUS_RETURN_IF_ERROR(store_.Read(read.context, read.layer, tokens, rows.data()));
  return rows;
}

// At any epoch: a context is released also after it was lost elsewhere.
absl::Status TaskExecutor::Release(const wire::Release& release) {
  {
    const Lock lock(mutex_);
    opened_.erase(release.context);
  }
  steps_.Forget(release.context);
  return store_.Release(release.context);
}

absl::StatusOr<std::shared_ptr<const Plan>> TaskExecutor::PlanOf(const wire::Attend& attend,
                                                                 const KvStore::Shard& shard,
                                                                 const WorkerTask& task) {
  const std::string key =
      absl::StrCat(attend.context, " ", attend.epoch, " ", attend.q_start, " ", attend.q_tokens,
                   " ", attend.kv_tokens, " ", attend.keys.begin, " ", attend.keys.end, " ",
                   Name(attend.plan), " ", attend.stages, " ", attend.pattern);
  {
    const Lock lock(mutex_);
    if (const auto* found = plans_.Find(key)) return *found;
  }
  ANNULUS_ASSIGN_OR_RETURN(const Pattern pattern,
                           Pattern::Parse(attend.pattern, shard.spec.kv_heads));
  const TokenRange q{attend.q_start, attend.q_start + attend.q_tokens};
  const Problem problem =
      ProblemOf(shard.spec, shard.world, q, attend.kv_tokens, attend.keys, pattern);
  const Stop stop([&] { return CheckInTime(task); });
  ANNULUS_ASSIGN_OR_RETURN(Plan plan, BuildPlan(attend.plan, problem, attend.stages, stop));
  auto shared = std::make_shared<const Plan>(std::move(plan));
  const Lock lock(mutex_);
  plans_.Insert(key, shared);
  return shared;
}

// A page that was damaged here must not make a wrong answer elsewhere.
absl::Status TaskExecutor::VerifyWhatLeaves(const Plan& plan, const KvStore::Shard& shard,
                                            const wire::Attend& attend) {
  for (const Step& step : plan.steps()) {
    for (const Transfer& transfer : step.transfers) {
      if (transfer.kind != Transfer::Kind::kKv || transfer.source != shard.rank) continue;
      ANNULUS_RETURN_IF_ERROR(
          store_.Verify(attend.context, attend.layer, transfer.heads, transfer.blocks));
    }
  }
  return absl::OkStatus();
}

// Pass-q of a few ranks moves everything between them and the caller.
bool TaskExecutor::Exchanges(const wire::Attend& attend) const {
  const absl::StatusOr<const KvStore::Shard*> shard = store_.Find(attend.context);
  return shard.ok() && (attend.plan != PlanKind::kPassQ ||
                        static_cast<size_t>((*shard)->world) > kDirectPartialsMax);
}

// Where queries come from the caller and partials go back to it, ranks have nothing to tell each
// other: none waits for another one, not even to hear that it failed.
absl::StatusOr<std::unique_ptr<Exchange>> TaskExecutor::ExchangeFor(const Plan& plan,
                                                                    const wire::Attend& attend,
                                                                    int rank) {
  bool moves = false;
  for (const Step& step : plan.steps()) {
    for (const Transfer& transfer : step.transfers) {
      moves |= transfer.source != kCaller && transfer.destination != kCaller;
    }
  }
  if (!moves) return std::make_unique<NoExchange>(rank, plan.world());
  if (on_exchange_) on_exchange_();
  std::vector<std::string> addresses;
  {
    const Lock lock(mutex_);
    addresses = opened_.at(attend.context).addresses;
  }
  return fabric_.OpenExchange(attend.request, rank, addresses);
}

absl::StatusOr<RankResult> TaskExecutor::Attend(const wire::Attend& attend, WorkerTask& task,
                                                std::vector<TraceSpan>* spans) {
  ANNULUS_RETURN_IF_ERROR(CheckInTime(task));
  const absl::Duration time_left = task.deadline - clock_.Now();
  ANNULUS_RETURN_IF_ERROR(CheckEpoch(attend.context, attend.epoch));
  ANNULUS_ASSIGN_OR_RETURN(const KvStore::Shard* shard, store_.Find(attend.context));
  ANNULUS_ASSIGN_OR_RETURN(const KvTable* table,
                           store_.Table(attend.context, attend.layer, attend.kv_tokens));
  ANNULUS_ASSIGN_OR_RETURN(const std::shared_ptr<const Plan> plan, PlanOf(attend, *shard, task));
  ANNULUS_RETURN_IF_ERROR(VerifyWhatLeaves(*plan, *shard, attend));
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Exchange> exchange,
                           ExchangeFor(*plan, attend, shard->rank));
  RankTask rank_task;
  rank_task.plan = plan.get();
  rank_task.rank = shard->rank;
  rank_task.q_packed = std::move(task.payload);
  rank_task.kv = table;
  rank_task.scale = attend.scale;
  rank_task.deadline = absl::Now() + time_left;  // the engine and the exchange go by wall time
  rank_task.cancel = task.cancel.get();
  rank_task.urgent = task.urgent;
  rank_task.owner = attend.context;
  if (attend.trace) {
    rank_task.trace = [spans](absl::string_view name, absl::Time begin, absl::Time end) {
      spans->push_back({"", std::string(name), absl::ToUnixNanos(begin), absl::ToUnixNanos(end)});
    };
  }
  absl::StatusOr<RankResult> result = RunRank(rank_task, backend_, *exchange);
  const Exchange::Counters moved = exchange->counters();
  bytes_sent_ += moved.bytes_sent;
  bytes_received_ += moved.bytes_received;
  return result;
}

}  // namespace annulus
