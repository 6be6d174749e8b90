#include "attention/cuda/table_cache.h"

#include <utility>
#include <vector>

#include "attention/cuda/work.h"
#include "base/status.h"

namespace annulus::cuda {
namespace {

// Tables that are remembered, kept or not.
constexpr size_t kEntriesMax = 1 << 14;

}  // namespace

absl::StatusOr<TableCache::Kept> TableCache::Find(const KvTable& kv) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t stamp = kv.stamp();
  const auto found = index_.find(stamp);
  if (found == index_.end()) {
    entries_.push_front({stamp, nullptr, 0});
    index_[stamp] = entries_.begin();
    Forget();
    return nullptr;
  }
  entries_.splice(entries_.begin(), entries_, found->second);
  Entry& entry = entries_.front();
  const auto pages = static_cast<size_t>(kv.blocks()) * static_cast<size_t>(kv.kv_heads());
  const size_t bytes = pages * sizeof(Page);
  if (entry.pages != nullptr || bytes == 0 || bytes > bytes_max_) return entry.pages;
  std::vector<Page> table;
  table.reserve(pages);
  for (int64_t block = 0; block < kv.blocks(); ++block) {
    for (int head = 0; head < kv.kv_heads(); ++head) {
      const KvPage& page = kv.page(kv.kv_head_first() + head, block);
      table.push_back({page.k, page.v, page.k_row_stride, page.v_row_stride});
    }
  }
  absl::StatusOr<Buffer> on_device = space_.Allocate(bytes);
  if (absl::IsResourceExhausted(on_device.status())) return nullptr;
  ANNULUS_RETURN_IF_ERROR(on_device.status());
  ANNULUS_RETURN_IF_ERROR(space_.CopyIn(table.data(), on_device->data(), bytes));
  entry.pages = std::make_shared<const Buffer>(*std::move(on_device));
  entry.bytes = bytes;
  bytes_ += bytes;
  const Kept kept = entry.pages;  // the entry may be the one that goes
  Forget();
  return kept;
}

void TableCache::Forget() {
  while (entries_.size() > kEntriesMax || bytes_ > bytes_max_) {
    bytes_ -= entries_.back().bytes;
    index_.erase(entries_.back().stamp);
    entries_.pop_back();
  }
}

}  // namespace annulus::cuda
