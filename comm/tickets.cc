#include "comm/tickets.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace annulus {

Exchange::Ticket TicketBook::Open(size_t operations) {
  entries_[++last_].open = operations;
  return last_;
}

void TicketBook::Finish(Exchange::Ticket ticket) {
  const auto it = entries_.find(ticket);
  ANNULUS_CHECK(it != entries_.end() && it->second.open > 0);
  --it->second.open;
}

void TicketBook::Fail(Exchange::Ticket ticket, const absl::Status& why) {
  const auto it = entries_.find(ticket);
  ANNULUS_CHECK(it != entries_.end());
  if (it->second.status.ok()) it->second.status = why;
}

std::vector<Exchange::Ticket> TicketBook::unfinished() const {
  std::vector<Exchange::Ticket> tickets;
  for (const auto& [ticket, entry] : entries_) {
    if (entry.open > 0) tickets.push_back(ticket);
  }
  return tickets;
}

absl::Status TicketBook::Wait(Exchange::Ticket ticket, absl::Time deadline,
                              std::unique_lock<std::mutex>& lock,
                              std::condition_variable& changed) {
  if (entries_.find(ticket) == entries_.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("ticket: ", ticket, "; expected one posted and not yet waited for"));
  }
  const auto done = [&] { return entries_.at(ticket).open == 0; };
  if (deadline == absl::InfiniteFuture()) {
    changed.wait(lock, done);
  } else if (!changed.wait_until(lock, absl::ToChronoTime(deadline), done)) {
    return absl::DeadlineExceededError(absl::StrCat("exchange: ", entries_.at(ticket).open,
                                                    " operations of ticket ", ticket,
                                                    " were not done at the deadline"));
  }
  absl::Status status = std::move(entries_.at(ticket).status);
  entries_.erase(ticket);
  return status;
}

}  // namespace annulus
