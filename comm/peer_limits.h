// What the peers of a messenger may have it hold.
#pragma once

#include <cstddef>

#include "absl/time/time.h"

namespace annulus {

struct PeerLimits {
  // Body and payload of one message, also of one to be sent.
  size_t message_bytes_max = size_t{16} << 30;
  // Messages that have begun to arrive, or were not handled yet: of one peer, and of all.
  size_t peer_bytes_max = size_t{32} << 30;
  size_t all_bytes_max = size_t{64} << 30;
  // A peer in the midst of a message that sends nothing for so long is dropped. This time and the
  // next pass only while the messenger is polled: who stood still itself blames nobody.
  absl::Duration half_message_time = absl::Seconds(60);
  // Peers that are strangers at once, and how long one may stay so, but for the time that its
  // message waits to be handled. Where there is one too many the oldest is dropped.
  size_t strangers_max = 1024;
  absl::Duration stranger_time = absl::Seconds(5);
};

}  // namespace annulus
