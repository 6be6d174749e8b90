// What a worker is told to do, and what comes of it. Values.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "annulus/buffer.h"
#include "base/thread_pool.h"
#include "comm/messenger.h"
#include "runtime/protocol/cluster/wire.h"

namespace annulus {

class MergePoint;

struct WorkerTask {
  // Open, Work, TruncateLayer, Truncate, Fork, Release, Resume or Read; Partials of another worker.
  // An Inventory, which no coordinator sends, asks for one of each context held.
  wire::Body body;
  Buffer payload;
  absl::Time deadline = absl::InfiniteFuture();
  // Of a Work that its coordinator sent itself; set when nobody waits for it.
  std::shared_ptr<std::atomic<bool>> cancel;
  // Of a Work of which something is merged among workers, and of Partials of it.
  std::shared_ptr<MergePoint> merge_point;
  bool urgent = false;                       // it goes before long work
  std::shared_ptr<const void> reserved;      // what the payload's memory counts in, if anything
  absl::Time queued = absl::InfinitePast();  // since when it waits for its turn
};

// How loops for an item of a task that is a Work take turns with others.
inline ThreadPool::Turn TurnOf(const WorkerTask& task, const wire::WorkItem& item) {
  return {task.urgent, item.storage_id, std::get<wire::Work>(task.body).tenant};
}

// What is to be sent to another worker.
struct PeerMessage {
  std::string address;  // of its fabric
  Message message;
};

// What is to be sent, in order. To the coordinator the last is the Done or WorkDone of `request`;
// 0: the task had none, or it is not answered yet.
struct TaskOutcome {
  uint64_t request = 0;
  bool inventory = false;  // the Inventories that were asked for
  std::vector<Message> messages;
  std::vector<PeerMessage> to_peers = {};
};

}  // namespace annulus
