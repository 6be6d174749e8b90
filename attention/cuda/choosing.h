// A call whose keys are chosen by data, on the device from end to end: its unit means, scores,
// choices and attention (choose.h). Its queries and outputs lie there or in host memory. Reused, so
// that a warm one allocates nothing. One thread.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "attention/backend.h"
#include "attention/cuda/choose.h"
#include "attention/cuda/host_rows.h"
#include "attention/cuda/table_cache.h"
#include "attention/key_list.h"
#include "attention/selector.h"
#include "base/cuda/handles.h"

namespace annulus::cuda {

// The word that the problem's pattern is, if these kernels choose by it: one that scores whole
// blocks by their means, over all keys of a context on the device. Null otherwise.
const Selector* ChosenBy(const AttendArgs& args);

// The list that stands for such a word, or list(name) & causal, if it is better attended here: one
// of whole blocks by query and query head, each row's own one among them, of many queries whose
// neighbours see little in common. Null otherwise.
const KeyList* GatheredBy(const AttendArgs& args);

class Choosing {
 public:
  // Finds a place for everything, for a word that is ChosenBy(args) or a list that is
  // GatheredBy(args). `kept` is the table of pages that is on the device already, or null. Rows are
  // attended in chunks whose slots take about so many bytes.
  absl::Status Place(const AttendArgs& args, const Selector& word, TableCache::Kept kept,
                     int64_t slot_bytes = int64_t{1} << 30);
  absl::Status Place(const AttendArgs& args, const KeyList& list, TableCache::Kept kept,
                     int64_t slot_bytes = int64_t{1} << 30);

  // Puts into the stream what brings the queries, and the kernels that choose, or take a list's
  // choices. If the call may be cancelled, waits until they are done, or CANCELLED.
  absl::Status StartChoosing(const AttendArgs& args, cudaStream_t stream);

  // Puts the kernels into the stream that attend. If the call may be cancelled, no chunk is started
  // before the one before the last is done.
  absl::Status StartAttending(const AttendArgs& args, cudaStream_t stream);

  // Waits for the stream. INTERNAL names a page that was missed, INVALID_ARGUMENT a row and a head
  // that would see a unit whose score f32 does not hold: then `into` is unspecified.
  absl::Status Finish(const AttendArgs& args, cudaStream_t stream);

  const Chosen& chosen() const { return chosen_; }

 private:
  absl::Status PlaceAll(const AttendArgs& args, TableCache::Kept kept, int64_t slot_bytes);
  absl::Status PlaceTable(const AttendArgs& args, TableCache::Kept kept);
  absl::Status StartLists(cudaStream_t stream);
  // Until what the stream was given before the event's last record is done.
  absl::Status Await(const AttendArgs& args, cudaEvent_t event);

  Chosen chosen_;
  ChosenLists list_;  // its begin is null: there is none
  std::shared_ptr<const KeyListData> list_data_;
  TableCache::Kept kept_;
  PinnedRoom table_;     // on its way to the device, and the report
  int* stop_ = nullptr;  // there
  DeviceRoom pages_;
  size_t table_bytes_ = 0;  // that are on their way
  DeviceRoom lists_;
  DeviceRoom list_room_;
  DeviceRoom states_;
  HostRows host_rows_;
  Event done_[2];  // of chunks in turn
};

}  // namespace annulus::cuda
