#include "attention/cuda/page_rows.h"

#include <algorithm>

namespace annulus::cuda {

PageRows PageRowsOf(const KvTable& kv) {
  PageRows rows;
  rows.values_in_keys = kv.v_head_dim() <= kv.head_dim();
  const bool on_host = kv.memory() == MemoryKind::kHost;
  if (on_host) rows.strides = {kv.head_dim()};
  if (on_host && kv.v_head_dim() != kv.head_dim()) rows.strides.push_back(kv.v_head_dim());
  int32_t last = 0;  // most pages are as the one before
  const auto add = [&](int32_t stride) {
    if (stride == last || on_host) return;
    last = stride;
    if (std::find(rows.strides.begin(), rows.strides.end(), stride) == rows.strides.end()) {
      rows.strides.push_back(stride);
    }
  };
  for (int64_t block = 0; block < kv.blocks(); ++block) {
    for (int head = kv.kv_head_first(); head < kv.kv_head_first() + kv.kv_heads(); ++head) {
      const KvPage& page = kv.page(head, block);
      if (page.k == nullptr) continue;
      add(page.k_row_stride);
      add(page.v_row_stride);
      rows.values_in_keys = rows.values_in_keys && ValuesInKeys(page);
    }
  }
  return rows;
}

}  // namespace annulus::cuda
