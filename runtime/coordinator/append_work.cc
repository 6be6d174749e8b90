#include "runtime/coordinator/append_work.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/coordinator/check_tensor.h"
#include "runtime/store/append_cut.h"
#include "runtime/store/context_layout.h"

namespace annulus {

absl::Status CheckKv(const ContextSpec& spec, const TensorView& k, const TensorView& v) {
  ANNULUS_RETURN_IF_ERROR(CheckTensor("k", k, spec.kv_heads, spec.head_dim, spec.dtype));
  if (spec.v_is_k_prefix) {
    if (v.tokens == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("v.tokens: ", v.tokens, "; expected 0: in this context V is K's first dims"));
  }
  ANNULUS_RETURN_IF_ERROR(CheckTensor("v", v, spec.kv_heads, spec.v_head_dim, spec.dtype));
  if (v.tokens == k.tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("v.tokens: ", v.tokens, "; expected k.tokens, ", k.tokens));
}

absl::StatusOr<PreparedWork> AppendWork::Prepare(const action::Admit& admit) {
  const ShardMap& map = *admit.map;
  ANNULUS_RETURN_IF_ERROR(CheckKv(map.spec, request_.k, request_.v));

  // Every holder hears of every append, also where it stores nothing of it, so that each knows the
  // layer's length and a gap cannot go unnoticed.
  const TokenRange tokens{request_.start, request_.start + request_.k.tokens};
  const Layout layout = LayoutOf(map.spec, map.world, tokens.end);
  const wire::Append append{admit.call,   map.epoch,     map.storage, request_.layer,
                            tokens.begin, tokens.size(), admit.mark};
  PreparedWork work;
  for (size_t i = 0; i < map.holders.size(); ++i) {
    const int rank = map.holders[i].rank;
    Buffer packed = PackAppend(map.spec, layout, rank, tokens, request_.k, request_.v);
    work.messages.push_back({static_cast<int>(i), {wire::Encode(append, std::move(packed))}});
  }
  return work;
}

}  // namespace annulus
