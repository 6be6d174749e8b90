// What a worker is told to do, and what comes of it. Values.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "annulus/buffer.h"
#include "comm/messenger.h"
#include "runtime/protocol/cluster/wire.h"

namespace annulus {

struct WorkerTask {
  // Open, Work, TruncateLayer, Truncate, Fork, Release, Resume or Read. An Inventory, which no
  // coordinator sends, asks for one of each context held.
  wire::Body body;
  Buffer payload;
  absl::Time deadline = absl::InfiniteFuture();
  // Of a Work that its coordinator sent itself; set when nobody waits for it.
  std::shared_ptr<std::atomic<bool>> cancel;
  bool urgent = false;                       // it goes before long work
  std::shared_ptr<const void> reserved;      // what the payload's memory counts in, if anything
  absl::Time queued = absl::InfinitePast();  // since when it waits for its turn
};

// What is to be sent, in order: the last is the Done or WorkDone of `request`, if the task had one.
struct TaskOutcome {
  uint64_t request = 0;
  bool inventory = false;  // the Inventories that were asked for
  std::vector<Message> messages;
};

}  // namespace annulus
