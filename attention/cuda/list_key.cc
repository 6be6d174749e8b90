#include "attention/cuda/list_key.h"

#include <algorithm>

namespace annulus::cuda {
namespace {

std::vector<int32_t> RowStridesOf(const KvTable& kv) {
  std::vector<int32_t> strides;
  int32_t last = 0;  // most pages are as the one before
  const auto add = [&](int32_t stride) {
    if (stride == last) return;
    last = stride;
    if (std::find(strides.begin(), strides.end(), stride) == strides.end()) {
      strides.push_back(stride);
    }
  };
  if (kv.memory() == MemoryKind::kHost) return strides;
  for (int64_t block = 0; block < kv.blocks(); ++block) {
    for (int head = kv.kv_head_first(); head < kv.kv_head_first() + kv.kv_heads(); ++head) {
      const KvPage& page = kv.page(head, block);
      if (page.k == nullptr) continue;
      add(page.k_row_stride);
      add(page.v_row_stride);
    }
  }
  return strides;
}

}  // namespace

ListKey::Shape::Shape(const AttendArgs& args, const Slots& slots)
    : slots(slots),
      pattern_id(args.pattern->id()),
      first_key(args.pattern->first_key()),
      q_dtype(args.q.dtype),
      kv_dtype(args.kv->dtype()),
      q_heads(args.q.heads),
      q_dim(args.q.dim),
      q_token_stride(args.q.token_stride),
      q_head_stride(args.q.head_stride),
      heads(args.heads),
      kv_tokens(args.kv_tokens),
      group(args.group),
      scale(args.scale),
      memory(args.memory),
      kv_memory(args.kv->memory()),
      kv_head_first(args.kv->kv_head_first()),
      kv_heads(args.kv->kv_heads()),
      head_dim(args.kv->head_dim()),
      v_head_dim(args.kv->v_head_dim()),
      blocks(args.kv->blocks()),
      row_strides(RowStridesOf(*args.kv)) {}

ListKey::ListKey(const AttendArgs& args, const Slots& slots)
    : shape_(args, slots), q_ranges_(args.q_ranges), keys_(args.keys->runs()) {}

bool ListKey::Fits(const AttendArgs& args, const Slots& slots) const {
  return shape_.pattern_id == args.pattern->id() && q_ranges_ == args.q_ranges &&
         keys_ == args.keys->runs() && shape_ == Shape(args, slots);
}

}  // namespace annulus::cuda
