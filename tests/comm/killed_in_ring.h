// A ring in which one rank dies at some step: what the others must see, whatever the exchange.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "comm/exchange.h"

namespace annulus {

struct KilledInRing {
  int step = 1;        // of world − 1
  bool posts = false;  // it dies with the step's operations under way, else before them
  int victim = 0;
  size_t size_bytes = 0;  // of what a step passes on
};

// Each rank's part, with 2·size_bytes of `memory`; `die` ends the victim. OK if the neighbours of
// the victim fail with UNAVAILABLE that names a rank, and everybody ends soon. One that needs
// nothing of the victim any more may come to its end.
inline absl::Status RunKilledInRing(const KilledInRing& ring, Exchange& exchange, std::byte* memory,
                                    const std::function<void()>& die) {
  constexpr absl::Duration kLimit = absl::Seconds(20);
  const int rank = exchange.rank();
  const int world = exchange.world();
  const int next = (rank + 1) % world;
  const int previous = (rank + world - 1) % world;
  // All connect first: UCX 1.13 may end a process whose peer dies while both connect to each other.
  std::vector<SendOp> hello;
  std::vector<RecvOp> answers;
  for (int peer = 0; peer < world; ++peer) {
    hello.push_back({peer, memory, 0});
    answers.push_back({peer, memory, 0});
  }
  const auto wait = [&](const absl::StatusOr<Exchange::Ticket>& ticket) {
    return ticket.ok() ? exchange.Wait(*ticket, absl::Now() + kLimit) : ticket.status();
  };
  absl::Status status = wait(exchange.Post(hello, answers));
  for (int step = 1; step < world && status.ok(); ++step) {
    const bool dies = rank == ring.victim && step == ring.step;
    if (dies && !ring.posts) {
      die();
      return absl::OkStatus();
    }
    const auto ticket = exchange.Post({{next, memory, ring.size_bytes}},
                                      {{previous, memory + ring.size_bytes, ring.size_bytes}});
    if (dies) {
      die();
      return absl::OkStatus();
    }
    status = wait(ticket);
  }
  if (status.ok()) {
    const bool needs_it = next == ring.victim || previous == ring.victim;
    if (ring.posts || !needs_it) return absl::OkStatus();
    return absl::InternalError("the ring came to its end without a rank that it needs");
  }
  exchange.Abort(status);  // as the engine does, so that nobody waits for this rank
  if (!absl::IsUnavailable(status) || !absl::StrContains(status.message(), "rank ")) {
    return absl::InternalError(absl::StrCat("got ", status.ToString(), ", expected UNAVAILABLE"));
  }
  const absl::Status later = exchange.Post({}, {}).status();
  if (absl::IsUnavailable(later)) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("a later Post got ", later.ToString()));
}

}  // namespace annulus
