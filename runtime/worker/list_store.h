// ListStore: the lists that the coordinator has this worker keep, by their numbers (wire::List).
// Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/context/bound_patterns.h"
#include "runtime/protocol/cluster/wire.h"

namespace annulus {

class ListStore {
 public:
  // Lists of an item, which outlives what is made of those that are not kept. Data that comes with
  // a number is kept. FAILED_PRECONDITION names one that should be, and is not.
  absl::StatusOr<std::vector<NumberedList>> Take(const std::vector<wire::List>& lists);

  // What was forgotten.
  std::vector<std::shared_ptr<const KeyListData>> Forget(absl::Span<const uint64_t> numbers);
  std::vector<std::shared_ptr<const KeyListData>> ForgetAll();

 private:
  std::mutex mutex_;
  std::map<uint64_t, std::shared_ptr<const KeyListData>> kept_;
};

}  // namespace annulus
