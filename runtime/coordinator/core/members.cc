#include "runtime/coordinator/core/members.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "runtime/limits.h"

namespace annulus {
namespace {

// Workers that were lost stay visible in Status, but not forever.
constexpr size_t kLostShownMax = 64;
constexpr size_t kNameBytesMax = 64;

}  // namespace

absl::Duration Members::NoteTime() {
  ForgetOldLosses();
  const absl::Time now = out_.now();
  const absl::Time last = std::exchange(last_event_, now);
  if (last == absl::InfinitePast()) began_ = now;
  if (last == absl::InfinitePast() || now - last <= heartbeat_timeout_ / 2) {
    return absl::ZeroDuration();
  }
  for (auto& [id, member] : members_) member.heard = now;
  doubt_until_ = now + 2 * heartbeat_timeout_;
  return now - last;
}

WorkerId Members::At(PeerId peer) const {
  const auto link = links_.find(peer);
  return link == links_.end() ? 0 : link->second;
}

bool Members::IsUp(WorkerId id) const {
  const auto member = members_.find(id);
  return member != members_.end() && member->second.is_up();
}

std::vector<WorkerId> Members::Ready() const {
  std::vector<WorkerId> ready;
  for (const auto& [id, member] : members_) {
    if (member.is_ready()) ready.push_back(id);
  }
  return ready;
}

std::map<WorkerId, Member>::iterator Members::FindAddress(const std::string& address) {
  return std::find_if(members_.begin(), members_.end(), [&](const auto& entry) {
    return !address.empty() && entry.second.status.address == address;
  });
}

WorkerId Members::FindReturning(const wire::Hello& hello) {
  const auto before = FindAddress(hello.address);
  if (before == members_.end() || !before->second.is_up()) return 0;
  doubt_until_ = std::max(doubt_until_, out_.now() + heartbeat_timeout_);
  return before->first;
}

void Members::Join(PeerId peer, const wire::Hello& hello) {
  if (hello.protocol != wire::kProtocol) {
    return out_.Emit(action::Send{
        peer, wire::Refused{absl::StrCat(
                  "protocol: ", hello.protocol, " of the worker; expected ", wire::kProtocol,
                  ", which the coordinator speaks: run the same release of annulus on both")}});
  }
  if (links_.size() >= size_t{kWorkersMax}) {
    return out_.Emit(action::Send{
        peer, wire::Refused{absl::StrCat("workers_max: ", kWorkersMax,
                                         "; as many in use, this worker needs 1 more")}});
  }
  const auto before = FindAddress(hello.address);
  if (before != members_.end()) {
    if (before->second.banned) return out_.Emit(action::Send{peer, wire::Fenced{}});
    members_.erase(before);
  }
  const WorkerId id = ++last_worker_;
  ++epoch_;
  Member member;
  member.peer = peer;
  member.heard = out_.now();
  member.label = absl::StrCat("worker ", id);
  const std::string name = absl::CEscape(absl::string_view(hello.name).substr(0, kNameBytesMax));
  if (!name.empty()) absl::StrAppend(&member.label, " (", name, ")");
  member.status = {.id = id,
                   .state = {},
                   .backend = hello.backend,
                   .address = hello.address,
                   .kv_bytes = 0,
                   .kv_bytes_limit = hello.kv_bytes_limit,
                   .data_address = hello.data_address,
                   .name = name};
  member.inventories_due = hello.contexts;
  member.had_another = hello.coordinator != 0;
  out_.Emit(action::WorkerJoined{peer, member.label, hello.backend});
  out_.Emit(action::Send{
      peer, wire::Welcome{id, incarnation_.number, std::string(incarnation_.peer_key.view())}});
  members_.emplace(id, std::move(member));
  links_.emplace(peer, id);
  ready_most_ = std::max(ready_most_, Ready().size());
}

void Members::Lose(WorkerId id, const absl::Status& why) {
  Member& member = members_.at(id);
  links_.erase(member.peer);
  member.state = member.may_leave ? WorkerState::kLeft : WorkerState::kLost;
  member.status.kv_bytes = 0;
  ++epoch_;
  out_.Emit(action::Drop{member.peer});
  if (member.may_leave) {
    out_.Emit(action::WorkerLeft{member.label});
  } else {
    out_.Emit(action::WorkerLost{member.label, why});
  }
}

void Members::ForgetOldLosses() {
  size_t lost = members_.size() - links_.size();
  for (auto next = members_.begin(); next != members_.end() && lost > kLostShownMax;) {
    const auto member = next++;
    if (member->second.is_up()) continue;
    members_.erase(member);
    --lost;
  }
}

std::vector<WorkerId> Members::Silent() const {
  std::vector<WorkerId> silent;
  for (const auto& [peer, id] : links_) {
    if (out_.now() - at(id).heard >= heartbeat_timeout_) silent.push_back(id);
  }
  return silent;
}

absl::Time Members::NextTimer() const {
  absl::Time next = links_.empty() ? absl::InfiniteFuture() : out_.now() + heartbeat_timeout_ / 4;
  for (const auto& [peer, id] : links_) next = std::min(next, at(id).heard + heartbeat_timeout_);
  return next;
}

void Members::Beat(WorkerId id, const wire::Heartbeat& heartbeat) {
  Member& member = members_.at(id);
  member.status.kv_bytes = heartbeat.kv_bytes;
  member.kv_bytes_since = 0;
  if (!heartbeat.leaves || !member.is_ready()) return;
  member.state = WorkerState::kDraining;
  ++epoch_;
}

void Members::LetLeave(WorkerId id, bool may_leave) {
  Member& member = members_.at(id);
  member.may_leave = may_leave;
  out_.Emit(action::Send{member.peer, wire::HeartbeatSeen{may_leave}});
}

bool Members::TakeInventory(WorkerId id) {
  Member& member = members_.at(id);
  if (member.inventories_due == 0) return false;
  --member.inventories_due;
  return true;
}

void Members::Tell(WorkerId id, const wire::Body& body) {
  const auto member = members_.find(id);
  if (member == members_.end() || !member->second.is_up()) return;
  out_.Emit(action::Send{member->second.peer, body});
}

void Members::TellHolders(const ShardMap& map, const wire::Body& body) {
  for (const Holder& holder : map.holders) Tell(holder.worker, body);
}

std::vector<WorkerStatus> Members::Status(absl::Time now) const {
  std::vector<WorkerStatus> all;
  for (const auto& [id, member] : members_) {
    all.push_back(member.status);
    all.back().state = std::string(Name(member.state));
    all.back().heartbeat_age_s = absl::ToDoubleSeconds(now - member.heard);
  }
  return all;
}

}  // namespace annulus
