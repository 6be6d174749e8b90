// KeptLists: the lists that callers name by handles, so that each travels once: kept for its
// caller's tenant within list_cache_bytes, and by the workers that have had it. A list that was not
// asked for longest goes first; what calls still use of it stays until they end. Thread-safe.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "annulus/key_list.h"
#include "base/shared_bound.h"
#include "runtime/coordinator/core/events.h"

namespace annulus {

class KeptLists {
 public:
  // A tenant has half of `bytes_max` at most, and so have together all callers without one.
  // `first_number`: workers of an earlier coordinator know its lists' numbers; these begin above.
  explicit KeptLists(int64_t bytes_max, uint64_t first_number = 0);

  // Gives lists that have handles the data that is kept for the tenant, and keeps data that comes
  // with a new one, if there is room. What is forgotten for it is added to `gone`.
  // FAILED_PRECONDITION (IsListNotKept) names a list whose handle is all that came, where nothing
  // is kept under it. INVALID_ARGUMENT names one that brings other data than is kept under its
  // handle, or data that is none (KeyList): that is not kept.
  absl::Status Resolve(const std::string& tenant, std::vector<CallList>* lists,
                       std::vector<std::shared_ptr<const KeyListData>>* gone);

  // Of data that Resolve gave, which its caller still holds; 0 of any other.
  uint64_t NumberOf(const KeyListData& data) const;

  // Whether a worker has a list, so that its number is enough.
  bool Has(WorkerId worker, uint64_t number) const;
  // What a worker has that no call will name again: as much of it as a message may tell.
  std::vector<uint64_t> ToForget(WorkerId worker) const;
  // A worker has answered a message by which it has had some lists and has forgotten others.
  void Answered(WorkerId worker, absl::Span<const uint64_t> had, absl::Span<const uint64_t> forgot);

  int64_t bytes() const;

 private:
  // What calls, kept lists and plans may share. What is held of a list after it was forgotten ends
  // with the last of them.
  struct Shared {
    std::mutex mutex;
    uint64_t last_number = 0;
    std::map<const KeyListData*, uint64_t> numbers;
    struct Worker {
      std::set<uint64_t> has;
      std::set<uint64_t> forgets;
    };
    std::map<WorkerId, Worker> workers;
  };
  class Held;
  using Key = std::pair<std::string, ListHandle>;  // tenant, handle
  struct Entry {
    Key key;
    std::shared_ptr<const KeyListData> data;
    int64_t bytes = 0;
  };
  using Gone = std::vector<std::shared_ptr<const KeyListData>>;

  std::shared_ptr<const KeyListData> Find(const Key& key);
  std::shared_ptr<const KeyListData> Keep(const Key& key, std::shared_ptr<const KeyListData> data,
                                          Gone* gone);
  void Forget(std::list<Entry>::iterator entry, Gone* gone);

  const std::shared_ptr<Shared> shared_;
  mutable std::mutex mutex_;  // of what follows; not taken while that of shared_ is held
  std::list<Entry> entries_;  // most recently asked for first
  std::map<Key, std::list<Entry>::iterator> index_;
  SharedBound bytes_;  // by TenantPeer
};

}  // namespace annulus
