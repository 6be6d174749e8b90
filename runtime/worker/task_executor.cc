#include "runtime/worker/task_executor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"
#include "runtime/worker/merge_point.h"

namespace annulus {
namespace {

using Lock = std::lock_guard<std::mutex>;

}  // namespace

TaskExecutor::TaskExecutor(std::unique_ptr<Backend> backend, Fabric& fabric, const Clock& clock,
                           Options options)
    : backend_(std::move(backend), clock),
      fabric_(fabric),
      on_exchange_(std::move(options.on_exchange)),
      store_(options.kv_bytes_limit, options.kv_in_host_memory ? HostMemory() : backend_.memory(),
             backend_.pool()),
      works_(
          store_, backend_, clock,
          {.check = [this](ContextId context,
                           uint64_t epoch) { return CheckEpoch(context, epoch); },
           .open_exchange = [this](ContextId context, uint64_t channel,
                                   int rank) { return OpenExchange(context, channel, rank); },
           .address_of = [this](ContextId context, int rank) { return AddressOf(context, rank); },
           .spans = std::move(options.spans)}) {}

TaskOutcome TaskExecutor::RunWork(const WorkerTask& task) {
  const auto& work = std::get<wire::Work>(task.body);
  TaskOutcome outcome = works_.Run(task);
  bool plans = false, attends = false;
  for (const wire::WorkItem& item : work.items) {
    plans |= item.plan.has_value();
    attends |= item.q_tokens > 0;
  }
  ++(plans ? attends_ : attends ? steps_ : appends_);
  return outcome;
}

TaskOutcome TaskExecutor::Run(WorkerTask task) {
  if (std::holds_alternative<wire::Work>(task.body)) return RunWork(task);
  if (auto* partials = std::get_if<wire::Partials>(&task.body)) {
    return task.merge_point->AddOthers(std::move(*partials), std::move(task.payload));
  }
  if (std::holds_alternative<wire::Inventory>(task.body)) {
    works_.ForgetLists();
    return TakeInventory();
  }
  TaskOutcome outcome;
  std::visit(
      [&](const auto& order) {
        if constexpr (requires { Execute(order, nullptr); }) {
          wire::Done done{.request = order.request, .epoch = order.epoch, .status = {}};
          Buffer answer;
          const auto owner =
              store_.OwnerCount(order.storage_id);  // a Release lets go of the context
          done.status = Execute(order, &answer);
          outcome.request = done.request;
          if (done.request == 0) return;
          const KvStore::Held held = store_.HeldBy(order.storage_id);
          done.context_kv_bytes = held.context_bytes;
          done.owner_kv_bytes = owner != nullptr ? owner->bytes() : held.owner_bytes;
          outcome.messages.push_back(wire::Encode(std::move(done), std::move(answer)));
        }
      },
      task.body);
  // A context that was never opened here has nothing to forget.
  if (const auto* trim = std::get_if<wire::TruncateLayer>(&task.body)) {
    (void)store_.TruncateLayer(trim->storage_id, trim->layer, trim->tokens);
  }
  return outcome;
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

absl::Status TaskExecutor::Execute(const wire::Open& open, Buffer*) {
  ANNULUS_RETURN_IF_ERROR(
      store_.Open(open.storage_id, open.spec, static_cast<int>(open.addresses.size()), open.rank));
  const Lock lock(mutex_);
  opened_[open.storage_id] = {open.epoch, open.addresses, open.copies, open.context};
  return absl::OkStatus();
}

absl::Status TaskExecutor::Execute(const wire::Truncate& truncate, Buffer*) {
  ANNULUS_RETURN_IF_ERROR(CheckEpoch(truncate.storage_id, truncate.epoch));
  return store_.Truncate(truncate.storage_id, truncate.tokens);
}

absl::Status TaskExecutor::Execute(const wire::Fork& fork, Buffer*) {
  ANNULUS_RETURN_IF_ERROR(CheckEpoch(fork.parent, fork.epoch));
  ANNULUS_RETURN_IF_ERROR(store_.Fork(fork.parent, fork.storage_id, fork.tokens));
  const Lock lock(mutex_);
  opened_[fork.storage_id] = opened_.at(fork.parent);
  opened_[fork.storage_id].context = fork.storage_id;
  return absl::OkStatus();
}

TaskOutcome TaskExecutor::TakeInventory() const {
  TaskOutcome outcome;
  outcome.inventory = true;
  const Lock lock(mutex_);
  for (const ContextId id : store_.ContextIds()) {
    const KvStore::Shard& shard = **store_.Find(id);
    const Opened& opened = opened_.at(id);
    const KvStore::Held held = store_.HeldBy(id);
    outcome.messages.push_back(wire::Encode(wire::Inventory{
        opened.epoch, id, shard.spec, shard.rank, opened.addresses, store_.Layers(id),
        held.context_bytes, opened.copies, opened.context, opened.activating, held.owner_bytes}));
  }
  return outcome;
}

// If it cannot be carried out, the context stays at its old epoch, and calls at the new one fail.
absl::Status TaskExecutor::Execute(const wire::Resume& resume, Buffer*) {
  ANNULUS_ASSIGN_OR_RETURN(const KvStore::Shard* shard, store_.Find(resume.storage_id));
  if (resume.addresses.size() != static_cast<size_t>(shard->world)) {
    return absl::FailedPreconditionError("the context has other ranks");
  }
  ANNULUS_RETURN_IF_ERROR(store_.RollBack(resume.storage_id, resume.layers));
  const Lock lock(mutex_);
  opened_[resume.storage_id] = {resume.epoch, resume.addresses, resume.copies, resume.context,
                                resume.activating};
  return absl::OkStatus();
}

absl::Status TaskExecutor::Execute(const wire::Read& read, Buffer* answer) {
  ANNULUS_RETURN_IF_ERROR(CheckEpoch(read.storage_id, read.epoch));
  ANNULUS_ASSIGN_OR_RETURN(const KvStore::Shard* shard, store_.Find(read.storage_id));
  const TokenRange tokens{read.start, read.start + read.tokens};
  if (read.layer >= StoredLayers(shard->spec)) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer: ", read.layer, "; expected below ", StoredLayers(shard->spec)));
  }
  const Layout layout = shard->layout(read.layer, tokens.end);
  Buffer rows(
      static_cast<size_t>(AppendBytes(shard->SpecOf(read.layer), layout, shard->rank, tokens)));
  ANNULUS_RETURN_IF_ERROR(store_.Read(read.storage_id, read.layer, tokens, rows.data()));
  *answer = std::move(rows);
  return absl::OkStatus();
}

// At any epoch: a context is released also after it was lost elsewhere.
absl::Status TaskExecutor::Execute(const wire::Release& release, Buffer*) {
  {
    const Lock lock(mutex_);
    opened_.erase(release.storage_id);
  }
  works_.Forget(release.storage_id);
  return store_.Release(release.storage_id);
}

std::string TaskExecutor::AddressOf(ContextId context, int rank) const {
  const Lock lock(mutex_);
  const auto found = opened_.find(context);
  if (found == opened_.end()) return "";
  const std::vector<std::string>& addresses = found->second.addresses;
  return static_cast<size_t>(rank) < addresses.size() ? addresses[static_cast<size_t>(rank)] : "";
}

absl::StatusOr<std::unique_ptr<Exchange>> TaskExecutor::OpenExchange(ContextId context,
                                                                     uint64_t channel, int rank) {
  if (on_exchange_) on_exchange_();
  std::vector<std::string> addresses;
  {
    const Lock lock(mutex_);
    addresses = opened_.at(context).addresses;
  }
  return fabric_.OpenExchange(channel, rank, addresses);
}

}  // namespace annulus
