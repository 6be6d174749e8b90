// TicketBook: the tickets of one exchange's member, for its implementations: how many operations of
// each are open, and whether it failed. Not thread-safe: its owner's mutex guards it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "comm/exchange.h"

namespace annulus {

class TicketBook {
 public:
  Exchange::Ticket Open(size_t operations);

  // One operation of the ticket is over: its memory is not touched any more.
  void Finish(Exchange::Ticket ticket);

  // The ticket will end with `why`, once its operations are over; the first reason stays.
  void Fail(Exchange::Ticket ticket, const absl::Status& why);

  // The tickets with operations that are not over.
  std::vector<Exchange::Ticket> unfinished() const;

  // Exchange::Wait; `lock` is held and `changed` is notified after each change.
  absl::Status Wait(Exchange::Ticket ticket, absl::Time deadline,
                    std::unique_lock<std::mutex>& lock, std::condition_variable& changed);

 private:
  struct Entry {
    size_t open = 0;
    absl::Status status;
  };

  Exchange::Ticket last_ = 0;
  std::map<Exchange::Ticket, Entry> entries_;  // until waited for
};

}  // namespace annulus
