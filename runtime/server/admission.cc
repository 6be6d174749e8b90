#include "runtime/server/admission.h"

#include "absl/strings/str_cat.h"
#include "annulus/retry_hint.h"

namespace annulus {
namespace {

constexpr absl::Duration kRetryAfterMin = absl::Milliseconds(20);

}  // namespace

Admission::Peer::Peer(Admission* admission, const std::string& name)
    : admission_(admission), name_(name) {
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

absl::Status Admission::Ticket::Enter(absl::Duration patience) {
  std::unique_lock<std::mutex> lock(admission_->mutex_);
  if (patience > absl::ZeroDuration() && !admission_->HasRoom(kSlots, 1, *entry_)) {
    ++admission_->waiting_;
    admission_->slot_free_.wait_for(lock, absl::ToChronoNanoseconds(patience),
                                    [this] { return admission_->HasRoom(kSlots, 1, *entry_); });
    --admission_->waiting_;
  }
  return admission_->Take(kSlots, 1, *this);
}

void Admission::Ticket::Leave() {
  const std::lock_guard<std::mutex> lock(admission_->mutex_);
  admission_->Give(kSlots, held_[kSlots], *this);
}

absl::Status Admission::Ticket::CheckSlot() {
  const std::lock_guard<std::mutex> lock(admission_->mutex_);
  if (admission_->HasRoom(kSlots, 1, *entry_)) return absl::OkStatus();
  return admission_->Refuse(kSlots, 1, *entry_);
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

bool Admission::HasRoom(Bound bound, int64_t count, const Entry& entry) const {
  return count <= max_[bound] - held_[bound] && count <= ShareOf(max_[bound]) - entry.held[bound];
}

absl::Status Admission::Take(Bound bound, int64_t count, Ticket& ticket) {
  if (!HasRoom(bound, count, *ticket.entry_)) return Refuse(bound, count, *ticket.entry_);
  held_[bound] += count;
  ticket.entry_->held[bound] += count;
  ticket.held_[bound] += count;
  return absl::OkStatus();
}

void Admission::Give(Bound bound, int64_t count, Ticket& ticket) {
  if (count == 0) return;
  held_[bound] -= count;
  ticket.entry_->held[bound] -= count;
  ticket.held_[bound] -= count;
  // Not one: whoever is woken may have its peer's share.
  if (bound == kSlots && waiting_ > 0) slot_free_.notify_all();
}

// A few calls' time: what is under way ends soon, and whoever waits long loses its place. The hints
// are spread, so that those that are refused together do not come again together: a multiple of the
// golden ratio is far from those before it.
absl::Status Admission::Refuse(Bound bound, int64_t count, const Entry& entry) {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;
  constexpr int kSpreadBits = 5;  // 32 ms
  const uint64_t spread_ms = (++refusals_ * kGolden) >> (64 - kSpreadBits);
  const bool by_all = count > max_[bound] - held_[bound];
  const std::string taken =
      by_all ? absl::StrCat(held_[bound], " are taken")
             : absl::StrCat("this caller has ", entry.held[bound], ", and at most half is one's");
  return WithRetryAfter(
      absl::ResourceExhaustedError(absl::StrCat(NameOf(bound), " ", max_[bound], ": ", taken, ", ",
                                                count, " needed; try again later")),
      kRetryAfterMin + absl::Milliseconds(spread_ms));
}

}  // namespace annulus
