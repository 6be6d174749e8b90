#include "runtime/coordinator/core/core.h"

#include <algorithm>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace annulus {

CoordinatorCore::CoordinatorCore(const CoordinatorLimits& limits, absl::Duration heartbeat_timeout,
                                 const Incarnation& incarnation)
    : limits_(limits),
      heartbeat_timeout_(heartbeat_timeout),
      members_(out_, heartbeat_timeout, incarnation),
      tenants_(out_),
      contexts_(limits_, heartbeat_timeout, incarnation, out_, members_, tenants_),
      recovery_(limits_, incarnation, out_, members_, contexts_),
      calls_(limits_, out_, members_, tenants_, contexts_, recovery_),
      mover_(out_, members_, tenants_, contexts_, calls_, recovery_) {}

Actions CoordinatorCore::Handle(absl::Time now, const Event& event) {
  out_.Begin(now);
  contexts_.NoteStandStill(members_.NoteTime());
  recovery_.NoteTime();
  std::visit([this](const auto& e) { On(e); }, event);
  mover_.Step();
  return out_.Take();
}

absl::Time CoordinatorCore::NextTimer() const {
  return std::min(
      {members_.NextTimer(), recovery_.NextTimer(), contexts_.NextTimer(), calls_.NextTimer()});
}

void CoordinatorCore::On(const event::Heard& heard) {
  if (const auto* hello = std::get_if<wire::Hello>(&heard.body)) return OnHello(heard.peer, *hello);
  const WorkerId id = members_.At(heard.peer);
  if (id == 0) return;  // cut off, or never joined
  members_.Hear(id);
  const absl::Status status = OnBody(id, heard.body);
  if (status.ok()) return;
  members_.Ban(id);
  LoseWorker(id, status);
}

// Its heartbeats come behind that message, and it waits for what they are answered with.
void CoordinatorCore::On(const event::PartHeard& part) {
  const WorkerId id = members_.At(part.peer);
  if (id == 0) return;
  members_.Hear(id);
  members_.LetLeave(id, members_.at(id).may_leave);
}

void CoordinatorCore::OnHello(PeerId peer, const wire::Hello& hello) {
  if (members_.At(peer) != 0) return;
  if (const WorkerId before = members_.FindReturning(hello); before != 0) {
    LoseWorker(before, absl::UnavailableError("it has joined again"));
  }
  members_.Join(peer, hello);
}

// Not OK: it said what no worker would.
absl::Status CoordinatorCore::OnBody(WorkerId id, const wire::Body& body) {
  if (const auto* done = std::get_if<wire::Done>(&body)) {
    if (!Mover::IsRequest(done->request)) return calls_.OnDone(id, *done);
    mover_.OnDone(id, done->request, done->status, done->context_kv_bytes, done->owner_kv_bytes);
  } else if (const auto* work_done = std::get_if<wire::WorkDone>(&body)) {
    if (!Mover::IsRequest(work_done->request)) return calls_.OnWorkDone(id, *work_done);
    for (const wire::WorkItemDone& item : work_done->items) {
      mover_.OnDone(id, work_done->request, item.status, item.context_kv_bytes,
                    item.owner_kv_bytes);
    }
  } else if (const auto* inventory = std::get_if<wire::Inventory>(&body)) {
    tenants_.NoteKv(inventory->spec.owner, id, inventory->owner_kv_bytes);
    const absl::Status taken = recovery_.OnInventory(id, *inventory);
    NoteRecovery();
    return taken;
  } else if (const auto* heartbeat = std::get_if<wire::Heartbeat>(&body)) {
    OnHeartbeat(id, *heartbeat);
  } else if (std::holds_alternative<wire::LinkLost>(body)) {
    calls_.OnLinkLost(id);
  } else {
    return absl::InternalError("it sent a message that only a coordinator sends");
  }
  return absl::OkStatus();
}

// A draining worker may leave once nothing needs it.
void CoordinatorCore::OnHeartbeat(WorkerId id, const wire::Heartbeat& heartbeat) {
  members_.Beat(id, heartbeat);
  for (const OwnerBytes& held : heartbeat.owners) {
    // Others have no contexts here: what is said of them is of no use, and without bounds.
    if (tenants_.Has(held.owner)) tenants_.NoteKv(held.owner, id, held.kv_bytes);
  }
  const bool may_leave = members_.at(id).is_draining() && !mover_.Needs(id) && !contexts_.Need(id);
  members_.LetLeave(id, may_leave);
}

void CoordinatorCore::On(const event::PeerDown& down) {
  if (const WorkerId id = members_.At(down.peer); id != 0) LoseWorker(id, down.why);
}

void CoordinatorCore::On(const event::SendFailed& failed) {
  if (failed.call != 0 && absl::IsResourceExhausted(failed.why)) {
    calls_.GiveUp(failed.call, failed.why);
    mover_.OnSendFailed(failed.call, failed.why);
    return;
  }
  // A worker that has missed a message no longer knows what it should.
  if (const WorkerId id = members_.At(failed.peer); id != 0) LoseWorker(id, failed.why);
}

void CoordinatorCore::On(const event::Use& use) {
  if (Context* context = contexts_.Find(use.context)) contexts_.Use(*context, use.calls);
}

void CoordinatorCore::On(const event::Tick&) {
  recovery_.EndIfDue();
  contexts_.EndAbsences();
  contexts_.EndLeases();
  for (const WorkerId id : members_.Silent()) {
    LoseWorker(id, absl::DeadlineExceededError(absl::StrCat(
                       "no heartbeat for ", absl::FormatDuration(heartbeat_timeout_))));
  }
  calls_.EndDue();
  NoteRecovery();
}

std::vector<ContextPlaces> CoordinatorCore::Places(size_t places_max) const {
  std::vector<ContextPlaces> places;
  for (const auto& [id, context] : contexts_.all()) {
    if (places.size() >= places_max) break;
    if (context.created) places.push_back(PlacesOf(context));
  }
  return places;
}

void CoordinatorCore::NoteRecovery() {
  if (recovering() > 0) {
    if (!recovery_began_.has_value()) recovery_began_ = out_.now();
  } else if (recovery_began_.has_value()) {
    recovery_time_ = out_.now() - *recovery_began_;
    recovery_began_.reset();
  }
}

void CoordinatorCore::LoseWorker(WorkerId id, const absl::Status& why) {
  members_.Lose(id, why);
  tenants_.LoseWorker(id);
  contexts_.LoseHolder(id);
  recovery_.LoseWorker(id);
  calls_.LoseWorker(id, absl::UnavailableError(absl::StrCat(
                            members_.at(id).label, " was lost during the call: ", why.message())));
  NoteRecovery();
}

absl::StatusOr<ContextInfo> CoordinatorCore::Describe(ContextId id, const Caller& caller) const {
  ANNULUS_ASSIGN_OR_RETURN(const Context* context, recovery_.Find(caller, id));
  return context->Info(out_.now());
}

absl::StatusOr<ShardMapPtr> CoordinatorCore::Look(ContextId id, int layer,
                                                  const Caller& caller) const {
  ANNULUS_ASSIGN_OR_RETURN(const Context* context, recovery_.Find(caller, id));
  ANNULUS_RETURN_IF_ERROR(context->CheckUsable());
  ANNULUS_RETURN_IF_ERROR(context->CheckLayer(layer));
  return context->map;
}

absl::StatusOr<std::vector<ContextInfo>> CoordinatorCore::List(const ListRequest& request,
                                                               const Caller& caller) const {
  if (request.limit < 1 || request.limit > kListMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("limit: ", request.limit, "; expected 1 to ", kListMax));
  }
  if (const int64_t pending = recovery_.Pending(caller); pending != 0) {
    return absl::UnavailableError(
        absl::StrCat(pending, " contexts are being recovered after a restart; retry"));
  }
  std::vector<ContextInfo> infos;
  size_t pattern_bytes = 0;
  for (auto next = contexts_.all().upper_bound(request.after);
       next != contexts_.all().end() && std::ssize(infos) < request.limit; ++next) {
    const Context& context = next->second;
    if (!context.created || !MayKnow(caller, context.owner())) continue;
    for (const std::string& text : context.map->spec.patterns) pattern_bytes += text.size();
    if (pattern_bytes > kListPatternsBytesMax && !infos.empty()) break;
    infos.push_back(context.Info(out_.now()));
  }
  return infos;
}

ClusterStatus CoordinatorCore::Status(absl::Time now, const Caller& caller) const {
  ClusterStatus status;
  status.epoch = members_.epoch();
  const Calls::InFlight in_flight = calls_.CountInFlight(caller);
  status.in_flight = in_flight.calls;
  status.in_flight_bytes = in_flight.bytes;
  const Contexts::EndedCounts ended = contexts_.CountEnded(caller);
  status.contexts_expired = ended.expired;
  status.contexts_evicted = ended.evicted;
  for (const auto& [id, context] : contexts_.all()) {
    if (!context.created || !MayKnow(caller, context.owner())) continue;
    status.contexts.push_back(context.InfoWithoutPatterns(now));
  }
  status.tenants = tenants_.Status(caller);
  status.workers = members_.Status(now);
  if (caller.role == Role::kAdmin) return status;
  for (WorkerStatus& worker : status.workers) worker.address.clear();
  return status;
}

}  // namespace annulus
