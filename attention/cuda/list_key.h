// What the work list of one problem follows from. The layers of a prefill differ in their pages
// alone, so that one list serves them all. Values.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/backend.h"
#include "attention/cuda/kernels.h"
#include "attention/cuda/page_rows.h"

namespace annulus::cuda {

class ListKey {
 public:
  // `rows`: of the arguments' table.
  ListKey(const AttendArgs& args, const Slots& slots, const PageRows& rows);

  // Whether they ask for the same rows of the same pattern: most others do not, and this is soon
  // said.
  bool AsksTheSame(const AttendArgs& args) const;
  // Whether the same list would be made of these.
  bool Fits(const AttendArgs& args, const Slots& slots, const PageRows& rows) const;

 private:
  // All that is copied from the arguments as it is.
  struct Shape {
    Shape(const AttendArgs& args, const Slots& slots, const PageRows& rows);
    friend bool operator==(const Shape&, const Shape&) = default;

    Slots slots;
    int64_t pattern_id, first_key;
    DType q_dtype, kv_dtype;
    int64_t q_heads, q_dim, q_token_stride, q_head_stride;
    HeadRange heads;
    int64_t kv_tokens;
    int group;
    float scale;
    MemoryKind memory, kv_memory;
    int kv_head_first, kv_heads, head_dim, v_head_dim;
    int64_t blocks;
    PageRows rows;
  };

  Shape shape_;
  std::vector<TokenRange> q_ranges_;
  std::vector<BlockRun> keys_;
};

}  // namespace annulus::cuda
