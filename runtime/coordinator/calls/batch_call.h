// BatchCall: the tensor work of a call that appends or attends: a batch of items, whichever call
// they came by. It packs each worker's part of all items into one message, merges what each worker
// answers, item by item, and finalises. Not thread-safe; the planner may be shared.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "attention/partial.h"
#include "base/clock.h"
#include "base/stop.h"
#include "runtime/coordinator/calls/call_planner.h"
#include "runtime/coordinator/calls/item_selection.h"
#include "runtime/coordinator/calls/tensor_call.h"
#include "sharding/layout.h"

namespace annulus {

// What a call wants of one layer of a context, and its tensors. The request that it was made of
// must outlive it.
struct CallItem {
  CallItem() = default;
  explicit CallItem(const AppendRequest& request);
  explicit CallItem(const AttendRequest& request);
  explicit CallItem(const StepRequest& request);

  request::WorkItem ask;
  TensorView k = {};
  TensorView v = {};
  TensorView q = {};
  const std::string* pattern = nullptr;
  const std::vector<CallList>* lists = nullptr;  // of the pattern; null as it is
  const std::vector<float>* sinks = nullptr;
  std::optional<PlanKind> plan = {};
  float scale = 0;
  // Refused where no word of its pattern chooses keys by data; then the weights of its queries too.
  bool selects_only = false;
  const std::vector<float>* weights = nullptr;
  int pattern_layer = 0;                  // whose pattern is meant where none is named
  const IndexQueries* index = nullptr;    // that the request brought
  std::optional<size_t> index_item = {};  // of the batch, which has them (index_item.h)
  const char* index_refused = nullptr;    // why no item has them
  bool is_index = false;                  // has those of another item
};

class BatchCall : public TensorCall {
 public:
  // Planner and clock must outlive this. `stop`: once the caller does not wait any more.
  BatchCall(std::vector<CallItem> items, const CallContext& call, CallPlanner& planner,
            const Clock& clock, Stop stop = {});

  // The first item reads what an earlier trip of the same call has read (request::WorkItem).
  void Require(std::optional<int64_t> truncations) { wanted_[0].ask.truncations = truncations; }

  // What the core is asked for.
  request::Work request() const;

  absl::StatusOr<PreparedCall> Prepare(const action::Admit& admit) override;
  absl::Status OnAnswer(ShareAnswer answer) override;

  // After the call has ended: whether an item went well, and the index queries that it brought.
  absl::Status EndOf(size_t index, const action::Finish& finish) const;

  // After the call has ended, once: how an item did.
  absl::StatusOr<StepResult> TakeResult(size_t index, const action::Finish& finish);

  // Once prepared: whether an item's pattern chooses keys by data, so that its queries are not
  // attended yet. Then, once it has ended well, the lists for another call.
  bool selects(size_t index) const {
    return items_[index].selection != nullptr || wanted_[index].index_item.has_value();
  }
  absl::StatusOr<std::vector<CallList>> TakeLists(size_t index);

 protected:
  const Clock& clock() const { return clock_; }
  bool trace_ = false;  // whether workers tell what they did when
  // Its one rank chooses and attends: all of its queries go there, and all answers come back.
  bool chooses(size_t index) const { return items_[index].chooses; }
  // Null unless the item is attended and was not refused.
  const Planned* planned(size_t index) const { return items_[index].planned.get(); }

 private:
  // Told of each phase that has ended.
  virtual void OnPhase(absl::string_view name, absl::Time begin) {}

  struct Item {
    const action::AdmittedItem* admitted = nullptr;
    std::optional<Layout> layout;
    std::shared_ptr<const Planned> planned;
    uint64_t channel = 0;  // as wire::WorkItem
    Partial merged;
    std::unique_ptr<ItemSelection> selection;  // first, before it is planned
    bool chooses = false;                      // its one rank chooses and attends
    int64_t choice_bytes = 0;                  // that this takes
    absl::Status index_status;                 // of index queries that came with what is appended
    bool merges_on_the_way = false;
  };
  // An item's part of one worker's message.
  struct Part {
    size_t item = 0;
    int rank = 0;  // the worker's in the item's context
    bool reads = false;
    bool answers = false;  // with a partial: not if another rank merges it
  };

  std::vector<absl::Status> PrepareItems();
  absl::Status PrepareItem(const CallItem& wanted, Item& item);
  absl::Status PrepareIndex(const CallItem& wanted, Item& item);
  static bool selects_by_index(const CallItem& wanted, const Item& item);
  // Else each rank gets all queries of all its heads: those of a step, and of what a rank chooses
  // for.
  bool FollowsPlan(size_t index) const {
    return wanted_[index].ask.kind == request::WorkItem::Kind::kAttend && !items_[index].chooses;
  }
  void ShareOut(size_t index);
  wire::WorkItem WireItem(const Part& part, WorkerId worker) const;
  void PackLists(const Part& part, WorkerId worker, wire::WorkItem* to) const;
  // The part of all items of one rank of the call. The ranks before it have got `packed`: what is
  // the same as the last one's is not packed again, so that queries which all ranks get are one
  // piece of memory however many those are.
  Message Pack(size_t rank, const std::vector<ShareMessage>& packed) const;
  std::byte* PackPart(const Part& part, std::byte* at) const;
  bool SameTensors(size_t rank, size_t other) const;
  int64_t AnswerBytesOf(const Part& part) const;
  // The candidates that it is answered with or chooses from, and the lists that it is sent.
  int64_t ChoiceBytesOf(const Part& part, WorkerId worker) const;
  // What the worker keeps of the lists of a rank's part, now that it has answered.
  void NoteLists(const ShareAnswer& answer);

  std::vector<CallItem> wanted_;
  const absl::Time deadline_;
  const std::string traceparent_;
  const uint64_t tenant_;
  CallPlanner& planner_;
  const Clock& clock_;
  const Stop stop_;

  action::Admit admit_;
  std::vector<Item> items_;
  std::vector<std::vector<Part>> parts_;             // by rank of the call
  std::vector<std::vector<uint64_t>> forget_lists_;  // likewise: what its worker is told
};

// Carries a batch out, to its end.
using RunCall = absl::FunctionRef<absl::StatusOr<action::Finish>(BatchCall& call)>;

}  // namespace annulus
