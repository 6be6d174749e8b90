#include "runtime/coordinator/append_work.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/coordinator/check_tensor.h"
#include "runtime/store/append_cut.h"
#include "runtime/store/context_layout.h"

namespace annulus {

absl::StatusOr<std::vector<RankMessages>> AppendWork::Prepare(CallId id, const ShardMap& map) {
  const ContextSpec& spec = map.spec;
  const TensorView& k = request_.k;
  const TensorView& v = request_.v;
  ANNULUS_RETURN_IF_ERROR(CheckTensor("k", k, spec.kv_heads, spec.head_dim, spec.dtype));
  if (spec.v_is_k_prefix) {
    if (v.tokens != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "v has ", v.tokens, " tokens, expected none: in this context V is K's first dims"));
    }
  } else {
    ANNULUS_RETURN_IF_ERROR(CheckTensor("v", v, spec.kv_heads, spec.v_head_dim, spec.dtype));
    if (v.tokens != k.tokens) {
      return absl::InvalidArgumentError(
          absl::StrCat("v has ", v.tokens, " tokens, expected as many as k, ", k.tokens));
    }
  }

  // Every rank hears of every append, also where it stores nothing of it, so that each knows the
  // layer's length and a gap cannot go unnoticed.
  const TokenRange tokens{request_.start, request_.start + k.tokens};
  const int world = static_cast<int>(map.workers.size());
  const Layout layout = LayoutOf(spec, world, tokens.end);
  std::vector<RankMessages> messages;
  for (int rank = 0; rank < world; ++rank) {
    const wire::Append append{id, map.epoch, map.context, request_.layer, tokens.begin, k.tokens};
    messages.push_back(
        {rank, {wire::Encode(append, PackAppend(spec, layout, rank, tokens, k, v))}});
  }
  return messages;
}

}  // namespace annulus
