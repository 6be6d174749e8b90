#include "attention/cuda/list_key.h"

namespace annulus::cuda {
ListKey::Shape::Shape(const AttendArgs& args, const Slots& slots, const PageRows& rows)
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
      rows(rows) {}

ListKey::ListKey(const AttendArgs& args, const Slots& slots, const PageRows& rows)
    : shape_(args, slots, rows), q_ranges_(args.q_ranges), keys_(args.keys->runs()) {}

bool ListKey::AsksTheSame(const AttendArgs& args) const {
  return shape_.pattern_id == args.pattern->id() && q_ranges_ == args.q_ranges &&
         keys_ == args.keys->runs();
}

bool ListKey::Fits(const AttendArgs& args, const Slots& slots, const PageRows& rows) const {
  return AsksTheSame(args) && shape_ == Shape(args, slots, rows);
}

}  // namespace annulus::cuda
