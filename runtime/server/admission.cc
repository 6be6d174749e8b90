#include "runtime/server/admission.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/retry_hint.h"

namespace annulus {
namespace {

constexpr absl::Duration kRetryAfterMin = absl::Milliseconds(20);

}  // namespace

Admission::Peer::Peer(Admission* admission, const std::string& name, std::string turn)
    : admission_(admission), name_(name), turn_(std::move(turn)) {
  const std::lock_guard<std::mutex> lock(admission_->mutex_);
  entry_ = &admission_->peers_[name];
  ++entry_->refs;
}

Admission::Peer::~Peer() {
  const std::lock_guard<std::mutex> lock(admission_->mutex_);
  if (--entry_->refs == 0) admission_->peers_.erase(name_);
}

Admission::Ticket::~Ticket() {
  const std::lock_guard<std::mutex> lock(admission_->mutex_);
  for (const Bound bound : {kSlots, kShortCalls, kBytes}) {
    admission_->Give(bound, held_[bound], *this);
  }
}

// While a slot is free, whoever waits may not have it, or it would.
absl::Status Admission::Ticket::Enter(const Work& work) {
  std::unique_lock<std::mutex> lock(admission_->mutex_);
  cost_ = work.cost;
  if (admission_->HasRoom(kSlots, 1, *peer_.entry_)) {
    admission_->waits_.Observe(0);
    return admission_->Take(kSlots, 1, *this);
  }
  const absl::Time now = absl::Now();
  WaitingCall call(this, work.cost, std::min(work.deadline, now + kWaitMax));
  return admission_->Wait(call, now, lock);
}

void Admission::Ticket::Leave() {
  const std::lock_guard<std::mutex> lock(admission_->mutex_);
  admission_->Give(kSlots, held_[kSlots], *this);
}

absl::Status Admission::Ticket::CheckTurn(const Work& work) {
  const std::lock_guard<std::mutex> lock(admission_->mutex_);
  if (admission_->HasRoom(kSlots, 1, *peer_.entry_)) return absl::OkStatus();
  const absl::Time now = absl::Now();
  const WaitingCall call(this, work.cost, std::min(work.deadline, now + kWaitMax));
  if (admission_->MayWait(call, now)) return absl::OkStatus();
  return admission_->Refuse(kSlots, 1, *peer_.entry_);
}

// What a peer has waiting is at most half of the queue, whoever takes turns in it.
bool Admission::MayWait(const WaitingCall& call, absl::Time now) const {
  const Peer& peer = call.ticket->peer_;
  return peer.entry_->waiting < ShareOf(max_[kSlots]) &&
         queue_.Judge(call, peer.turn_, now) == FairQueue::Verdict::kWaits;
}

absl::Status Admission::Wait(WaitingCall& call, absl::Time now,
                             std::unique_lock<std::mutex>& lock) {
  Ticket& ticket = *call.ticket;
  Entry& entry = *ticket.peer_.entry_;
  if (!MayWait(call, now)) return Refuse(kSlots, 1, entry);
  FairQueue::Call* pushed_out = nullptr;
  queue_.Add(&call, ticket.peer_.turn_, now, &pushed_out);
  if (pushed_out != nullptr) {
    auto& other = static_cast<WaitingCall&>(*pushed_out);
    other.over = true;
    other.news.notify_one();
  }
  ++entry.waiting;
  const auto until = absl::ToChronoTime(call.latest);
  call.news.wait_until(lock, until, [&call] { return call.over; });
  --entry.waiting;
  waits_.Observe(absl::ToDoubleSeconds(absl::Now() - now));
  if (!call.over) queue_.Remove(&call);
  return ticket.held_[kSlots] > 0 ? absl::OkStatus() : Refuse(kSlots, 1, entry);
}

std::map<std::string, int64_t> Admission::Waiting() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return queue_.WaitingByTenant();
}

// Free slots go to those that wait and may have one.
void Admission::HandOn() {
  while (!queue_.empty() && held_[kSlots] < max_[kSlots]) {
    FairQueue::Call* const next = queue_.Next([this](const FairQueue::Call& call) {
      return HasRoom(kSlots, 1, *static_cast<const WaitingCall&>(call).ticket->peer_.entry_);
    });
    if (next == nullptr) return;
    auto& call = static_cast<WaitingCall&>(*next);
    Take(kSlots, 1, *call.ticket).IgnoreError();  // it has room
    call.over = true;
    call.news.notify_one();
  }
}

absl::Status Admission::Ticket::EnterShort() {
  const std::lock_guard<std::mutex> lock(admission_->mutex_);
  return admission_->Take(kShortCalls, 1, *this);
}

absl::Status Admission::Ticket::Reserve(int64_t bytes) {
  const std::lock_guard<std::mutex> lock(admission_->mutex_);
  const int64_t room = ShareOf(admission_->max_[kBytes]) - held_[kBytes];
  if (bytes > room) {
    return absl::InvalidArgumentError(absl::StrCat("bytes of the request: ", bytes,
                                                   " of buffer with its answer; expected at ",
                                                   "most ", room, " (half of buffer_bytes_max)"));
  }
  return admission_->Take(kBytes, bytes, *this);
}

absl::string_view Admission::NameOf(Bound bound) {
  switch (bound) {
    case kSlots:
      return "in_flight_max";
    case kShortCalls:
      return "short_calls_max";
    case kBytes:
      break;
  }
  return "buffer_bytes_max";
}

absl::Status Admission::Take(Bound bound, int64_t count, Ticket& ticket) {
  if (!HasRoom(bound, count, *ticket.peer_.entry_))
    return Refuse(bound, count, *ticket.peer_.entry_);
  held_[bound] += count;
  ticket.peer_.entry_->held[bound] += count;
  ticket.held_[bound] += count;
  return absl::OkStatus();
}

void Admission::Give(Bound bound, int64_t count, Ticket& ticket) {
  if (count == 0) return;
  held_[bound] -= count;
  ticket.peer_.entry_->held[bound] -= count;
  ticket.held_[bound] -= count;
  if (bound != kSlots || queue_.empty()) return;
  queue_.NoteServed(ticket.cost_, absl::Now());
  HandOn();
}

// A few calls' time: what is under way ends soon, and whoever waits long loses its place. The hints
// are spread, so that those that are refused together do not come again together: a multiple of the
// golden ratio is far from those before it.
absl::Status Admission::Refuse(Bound bound, int64_t count, const Entry& entry) {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;
  constexpr int kSpreadBits = 5;  // 32 ms
  const uint64_t spread_ms = (++refusals_ * kGolden) >> (64 - kSpreadBits);
  return WithRetryAfter(AboveBound({.name = NameOf(bound)}, UseOf(bound, entry), count),
                        kRetryAfterMin + absl::Milliseconds(spread_ms));
}

}  // namespace annulus
