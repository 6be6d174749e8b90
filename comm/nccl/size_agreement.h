// What the ranks of a group tell each other before anything moves, over the control exchange: how
// many operations each posts to the other, and of which sizes.
// One thread.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "comm/exchange.h"

namespace annulus {

// Of one group, by peer: the sizes of what is sent there and received from there, in order.
struct PeerSizes {
  std::vector<uint64_t> sends;
  std::vector<uint64_t> receives;
};
using SizesByPeer = std::map<int, PeerSizes>;

SizesByPeer SizesOf(absl::Span<const SendOp> sends, absl::Span<const RecvOp> receives);

// Waits for a ticket of the control exchange, or until whoever waits has another reason to stop.
using ControlWait = std::function<absl::Status(Exchange::Ticket)>;

// What the peers say of the same group: their `sends` are our receives. Returns once all peers of
// `mine`, but for the rank itself, have posted theirs. INTERNAL if one posts other operations than
// this rank in the group.
absl::StatusOr<SizesByPeer> Agree(Exchange& control, const SizesByPeer& mine,
                                  const ControlWait& wait);

}  // namespace annulus
