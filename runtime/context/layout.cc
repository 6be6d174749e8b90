#include "runtime/context/layout.h"

#include <utility>

#include "base/status.h"
#include "runtime/context/retention.h"
#include "runtime/fields/check.h"
#include "runtime/fields/values.h"

namespace annulus {
absl::Status ValidateSpec(const ContextSpec& spec) {
  ANNULUS_RETURN_IF_ERROR(CheckSpecFields(spec));
  return Retention::Of(spec).status();
}

absl::Status CheckSpecFields(const ContextSpec& spec) {
  return CheckFields(spec, FieldPath());
}

Layout LayoutOf(const ContextSpec& spec, int world, int64_t tokens) {
  const int64_t length =
      spec.partition.kind == PartitionKind::kBlockCyclic ? tokens : spec.tokens_expected;
  return Layout::Of(spec.placement, world, spec.heads, spec.kv_heads, spec.partition,
                    BlocksOf(length));
}

Problem ProblemOf(const ContextSpec& spec, int world, TokenRange q, int64_t kv_tokens,
                  TokenRange keys, const Pattern& pattern) {
  return {.q_tokens = q.size(),
          .q_start = q.begin,
          .kv_tokens = kv_tokens,
          .keys_end = keys.end,
          .heads = spec.heads,
          .kv_heads = spec.kv_heads,
          .head_dim = spec.head_dim,
          .v_head_dim = spec.v_head_dim,
          .v_is_k_prefix = spec.v_is_k_prefix,
          .dtype = spec.dtype,
          .pattern = pattern.KeysFrom(keys.begin),
          .home = Home::kCaller,
          .home_partition = {PartitionKind::kZigzag, 1},
          .kv = LayoutOf(spec, world, kv_tokens)};
}

const std::string& PatternOf(const ContextSpec& spec, int layer, const std::string& asked) {
  static const std::string& causal = *new std::string("causal");
  if (!asked.empty()) return asked;
  if (spec.patterns.empty()) return causal;
  return spec.patterns.size() == 1 ? spec.patterns[0]
                                   : spec.patterns.at(static_cast<size_t>(layer));
}

int64_t TokenBytes(const ContextSpec& spec) {
  const int dims = spec.head_dim + (spec.v_is_k_prefix ? 0 : spec.v_head_dim);
  return dims * static_cast<int64_t>(SizeOf(spec.dtype));
}

int64_t DenseBytes(const ContextSpec& spec, int world, const std::vector<int64_t>& tokens) {
  const Layout layout = LayoutOf(spec, world, 0);
  int64_t heads_held = 0;  // of a block, over the ranks that have it
  for (int group = 0; group < layout.mesh().head_groups; ++group) {
    heads_held += layout.KvHeads(layout.Rank(group, 0)).count;
  }
  int64_t blocks = 0;
  for (const int64_t layer : tokens) blocks += BlocksOf(layer);
  return blocks * heads_held * PageBytes(spec);
}

int64_t PageBytes(const ContextSpec& spec) {
  return kBlockTokens * TokenBytes(spec);
}

}  // namespace annulus
