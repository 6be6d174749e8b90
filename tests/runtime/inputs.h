// Random tensors and the oracle's answers for tests of the service.
#pragma once

#include <cmath>
#include <optional>
#include <string>

#include "annulus/types.h"
#include "attention/backend.h"
#include "attention/kv_view.h"
#include "base/check.h"
#include "base/rng.h"
#include "runtime/context/bind_lists.h"

namespace annulus::test {

// f32 values that are exact in every dtype, so that storing rounds nothing.
inline Tensor RandomTensor(int64_t tokens, int64_t heads, int64_t dim, Rng& rng) {
  Tensor tensor(DType::kF32, tokens, heads, dim);
  for (int64_t i = 0; i < tokens * heads * dim; ++i) {
    tensor.f32()[i] = BF16ToF32(F32ToBF16(rng.Normal()));
  }
  return tensor;
}

// A small context of f32, whose blocks change ranks one by one.
inline ContextSpec SmallF32Spec(int layers = 1) {
  ContextSpec spec;
  spec.layers = layers;
  spec.heads = 4;
  spec.kv_heads = 2;
  spec.head_dim = 16;
  spec.v_head_dim = 8;
  spec.dtype = DType::kF32;
  spec.partition = {PartitionKind::kBlockCyclic, 1};
  return spec;
}

// The values of a context's layer.
struct LayerKv {
  LayerKv() = default;
  LayerKv(const ContextSpec& spec, int64_t tokens, Rng& rng)
      : k(RandomTensor(tokens, spec.kv_heads, spec.head_dim, rng)) {
    if (!spec.v_is_k_prefix) v = RandomTensor(tokens, spec.kv_heads, spec.v_head_dim, rng);
  }

  TensorView V(const ContextSpec& spec) const {
    if (!spec.v_is_k_prefix) return v;
    TensorView prefix = k;
    prefix.dim = spec.v_head_dim;
    return prefix;
  }
  AppendRequest Append(ContextId context, int layer, int64_t start, int64_t tokens) const {
    AppendRequest request;
    request.context = context;
    request.layer = layer;
    request.start = start;
    request.k = k.view().Tokens(start, tokens);
    if (v.tokens() != 0) request.v = v.view().Tokens(start, tokens);
    return request;
  }
  // Appends the tokens of the queries, which then see them.
  StepRequest Step(ContextId context, int layer, int64_t start, const TensorView& q) const {
    const AppendRequest append = Append(context, layer, start, q.tokens);
    StepRequest step;
    step.context = context;
    step.layer = layer;
    step.start = start;
    step.k = append.k;
    step.v = append.v;
    step.q = q;
    return step;
  }

  Tensor k;
  Tensor v;
};

// Float64 attention of queries from q_start on, or the last q.tokens, of the first kv_len, over all
// of those or `seen`.
inline Partial Oracle(const ContextSpec& spec, const LayerKv& kv, const TensorView& q,
                      int64_t kv_len, const std::string& pattern_text,
                      std::optional<int64_t> q_start = {}, std::optional<TokenRange> seen = {},
                      const std::vector<CallList>& lists = {}) {
  static Backend& reference = *MakeBackend("reference", 1).value().release();
  const TokenRange range = seen.value_or(TokenRange{0, kv_len});
  const Pattern parsed = Pattern::Parse(pattern_text, spec.kv_heads).value();
  const Pattern pattern = BindLists(parsed, lists, spec.heads).value().KeysFrom(range.begin);
  const KvTable table =
      KvTable::FromTensors(kv.k.view().Tokens(0, kv_len), kv.V(spec).Tokens(0, kv_len));
  const BlockSet keys = BlockSet::Range(0, BlocksOf(kv_len));
  Partial answer(q.tokens, spec.heads, spec.v_head_dim);
  AttendArgs args;
  args.q = q;
  const int64_t first = q_start.value_or(kv_len - q.tokens);
  args.q_ranges = {{first, first + q.tokens}};
  args.heads = {0, spec.heads};
  args.kv_tokens = range.end;
  args.group = spec.heads / spec.kv_heads;
  args.kv = &table;
  args.pattern = &pattern;
  args.keys = &keys;
  args.scale = 1.0f / std::sqrt(static_cast<float>(spec.head_dim));
  args.into = answer.view();
  ANNULUS_CHECK(reference.Attend(args).ok());
  return answer;
}

// The largest difference between two answers over out and lse; equal infinities differ by nothing.
inline double WorstError(const TensorView& out, const TensorView& lse, const Partial& expected) {
  const auto worst = [](const TensorView& a, const TensorView& b) {
    if (a.size() != b.size()) return INFINITY;
    float most = 0;
    const auto* x = reinterpret_cast<const float*>(a.data);
    const auto* y = reinterpret_cast<const float*>(b.data);
    for (int64_t i = 0; i < a.size(); ++i) {
      if (x[i] != y[i])
        most = std::fmax(most, std::isnan(x[i]) ? INFINITY : std::fabs(x[i] - y[i]));
    }
    return most;
  };
  return std::fmax(worst(out, expected.out()), worst(lse, expected.lse()));
}

}  // namespace annulus::test
