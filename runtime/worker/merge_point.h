// MergePoint: one Work of which partials are merged on their way to the coordinator. Those of other
// ranks come here and are merged into this rank's own; what is whole goes on, to the next rank or
// with the answer. No thread waits for it: whoever brings what was missing takes away what follows.
//
// Each item has a tree of its own among the ranks that attend it, and goes on as soon as it is
// whole. So ranks never wait for each other in a circle, in whatever order their tasks run. An item
// that has failed is told on as such, and the others go on without it. Thread-safe.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "annulus/buffer.h"
#include "attention/memory_space.h"
#include "runtime/worker/task.h"

namespace annulus {

// What a rank has computed of a Work.
struct OwnPartials {
  wire::WorkDone done;  // its answer
  Buffer bytes;         // the partials of the items that went well, in their order
  // Of `bytes`, by item, one after the other: one for each range of heads, none where it failed.
  std::vector<std::vector<PartialView>> views;
  std::vector<std::string> next = {};  // the address of the rank that takes them, by item
};

class MergePoint {
 public:
  // Null if nothing of the work is merged here or goes to another rank.
  static std::shared_ptr<MergePoint> Of(const wire::Work& work);

  // Each of these returns what is to be sent now. AddOwn is called once.
  TaskOutcome AddOwn(OwnPartials own);
  TaskOutcome AddOthers(wire::Partials partials, Buffer payload);
  // These items have failed elsewhere; if none is named, all of them.
  TaskOutcome Drop(absl::Span<const wire::ItemName> names);

 private:
  struct Item {
    wire::ItemName name;
    bool goes_on = false;  // to another rank
    int awaited = 0;       // partials of others
    bool failed = false;
    bool told = false;  // the next rank has it, or knows that it failed

    bool whole() const { return failed || awaited == 0; }
  };
  using Others = std::pair<wire::Partials, Buffer>;

  explicit MergePoint(const wire::Work& work);
  size_t IndexOf(const Item& item) const { return static_cast<size_t>(&item - items_.data()); }
  size_t BytesOf(const Item& item) const;
  Buffer PartialsOf(const std::vector<const Item*>& items) const;
  Item* Find(const wire::ItemName& name, size_t* hint);
  void Merge(const Others& others);
  void Fail(Item* item, const char* why);
  TaskOutcome Go();
  void TellNext(TaskOutcome* outcome);

  std::mutex mutex_;  // of all below
  std::vector<Item> items_;
  bool computed_ = false;
  bool answered_ = false;
  OwnPartials own_;
  std::vector<Others> early_;  // before this rank's own
};

}  // namespace annulus
