#include "runtime/store/context_layout.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/store/retention.h"

namespace annulus {
namespace {

constexpr int kLayersMax = 1024;
constexpr int kLeaseMaxS = 366 * 86'400;

absl::Status Bad(absl::string_view field, int64_t value, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, "; expected ", expected));
}

absl::Status CheckDim(absl::string_view field, int dim) {
  if (dim < 8 || dim > kHeadDimMax || dim % 8 != 0) {
    return Bad(field, dim, absl::StrCat("a multiple of 8 from 8 to ", kHeadDimMax));
  }
  return absl::OkStatus();
}

absl::Status CheckPartition(const ContextSpec& spec) {
  switch (spec.partition.kind) {
    case PartitionKind::kBlockCyclic:
      if (spec.partition.unit_blocks < 1 || spec.partition.unit_blocks > kUnitBlocksMax) {
        return Bad("partition unit_blocks", spec.partition.unit_blocks,
                   absl::StrCat("1 to ", kUnitBlocksMax));
      }
      return absl::OkStatus();
    case PartitionKind::kContiguous:
    case PartitionKind::kZigzag:
      if (spec.tokens_expected == 0) {
        return Bad("tokens_expected", 0,
                   absl::StrCat("the context's length with partition ", spec.partition.ToString(),
                                " (only block-cyclic grows without a known end)"));
      }
      return absl::OkStatus();
  }
  return Bad("partition", static_cast<int64_t>(spec.partition.kind),
             "contiguous, zigzag or block-cyclic");
}

absl::Status CheckPatterns(const ContextSpec& spec) {
  const auto patterns = static_cast<int64_t>(spec.patterns.size());
  if (patterns > 1 && patterns != spec.layers) {
    return Bad("size of patterns", patterns,
               absl::StrCat("0, 1 or one for each of ", spec.layers, " layers"));
  }
  size_t bytes = 0;
  for (const std::string& pattern : spec.patterns) bytes += pattern.size();
  if (bytes > kPatternBytesMax) {
    return Bad("bytes of patterns", static_cast<int64_t>(bytes),
               absl::StrCat("at most ", kPatternBytesMax, " together"));
  }
  if (spec.kv_efficient && patterns == 0) {
    return Bad("size of patterns", 0, "at least 1 with kv_efficient: they say what may be let go");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateSpec(const ContextSpec& spec) {
  ANNULUS_RETURN_IF_ERROR(CheckSpecFields(spec));
  return Retention::Of(spec).status();
}

absl::Status CheckSpecFields(const ContextSpec& spec) {
  if (spec.layers < 1 || spec.layers > kLayersMax) {
    return Bad("layers", spec.layers, absl::StrCat("1 to ", kLayersMax));
  }
  if (spec.kv_heads < 1 || spec.kv_heads > kKvHeadsMax) {
    return Bad("kv_heads", spec.kv_heads, absl::StrCat("1 to ", kKvHeadsMax));
  }
  if (spec.heads < 1 || spec.heads > kHeadsMax || spec.heads % spec.kv_heads != 0) {
    return Bad("heads", spec.heads,
               absl::StrCat("a multiple of kv_heads ", spec.kv_heads, " up to ", kHeadsMax));
  }
  ANNULUS_RETURN_IF_ERROR(CheckDim("head_dim", spec.head_dim));
  ANNULUS_RETURN_IF_ERROR(CheckDim("v_head_dim", spec.v_head_dim));
  if (spec.v_is_k_prefix && spec.v_head_dim > spec.head_dim) {
    return Bad("v_head_dim", spec.v_head_dim,
               absl::StrCat("at most head_dim ", spec.head_dim, " with v_is_k_prefix"));
  }
  if (!IsKnown(spec.dtype)) {
    return Bad("dtype", static_cast<int64_t>(spec.dtype), "f32, f16 or bf16");
  }
  if (spec.placement != Placement::kTokens && spec.placement != Placement::kHeads &&
      spec.placement != Placement::kMesh) {
    return Bad("placement", static_cast<int64_t>(spec.placement), "tokens, heads or mesh");
  }
  if (spec.tokens_expected < 0 || spec.tokens_expected > kContextTokensMax) {
    return Bad("tokens_expected", spec.tokens_expected, absl::StrCat("0 to ", kContextTokensMax));
  }
  if (spec.replicas < 1 || spec.replicas > 2) {
    return Bad("replicas", spec.replicas, "1 or 2: how many workers hold each page");
  }
  if (!(spec.lease >= 0 && spec.lease <= kLeaseMaxS)) {
    return absl::InvalidArgumentError(
        absl::StrCat("lease: ", spec.lease, "; expected 0 (none) to ", kLeaseMaxS, " seconds"));
  }
  ANNULUS_RETURN_IF_ERROR(CheckPartition(spec));
  return CheckPatterns(spec);
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
