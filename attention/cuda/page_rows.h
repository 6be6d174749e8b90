// How the rows of a table's pages lie.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/kv_view.h"

namespace annulus::cuda {

struct PageRows {
  // Of keys and values as kernels read them, in elements, each once, as they come. Pages in host
  // memory are copied without gaps.
  std::vector<int32_t> strides;
  // Every page's values are the first dims of its own keys, the same memory.
  bool values_in_keys = false;

  friend bool operator==(const PageRows&, const PageRows&) = default;
};

PageRows PageRowsOf(const KvTable& kv);

// Whether the page's values are the first dims of its keys.
inline bool ValuesInKeys(const KvPage& page) {
  return page.v == page.k && page.v_row_stride == page.k_row_stride;
}

}  // namespace annulus::cuda
