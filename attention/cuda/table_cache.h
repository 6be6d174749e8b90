// Tables of pages that stay on the device between calls: that of a million tokens takes a fifth of
// a decode step to make and to upload. A table is kept once it is asked for the second time, so
// that those made for one call are not; what was not asked for longest goes first. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "absl/status/statusor.h"
#include "annulus/buffer.h"
#include "attention/kv_view.h"
#include "attention/memory_space.h"

namespace annulus::cuda {

class TableCache {
 public:
  // The pages as work.h's Page, by block and head.
  using Kept = std::shared_ptr<const Buffer>;

  // `space` outlives this.
  explicit TableCache(MemorySpace& space, size_t bytes_max = size_t{512} << 20)
      : space_(space), bytes_max_(bytes_max) {}

  // The table's pages on the device, or null if they are not kept. A table larger than the cache
  // never is. RESOURCE_EXHAUSTED is no error of the cache's: then it is null too.
  absl::StatusOr<Kept> Find(const KvTable& kv);

 private:
  struct Entry {
    uint64_t stamp = 0;
    Kept pages;  // null: asked for once
    size_t bytes = 0;
  };

  void Forget();

  MemorySpace& space_;
  const size_t bytes_max_;
  std::mutex mutex_;
  std::list<Entry> entries_;  // most recently asked for first
  std::unordered_map<uint64_t, std::list<Entry>::iterator> index_;
  size_t bytes_ = 0;
};

}  // namespace annulus::cuda
