#include "runtime/context/layout.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/context/retention.h"
#include "runtime/fields/check.h"
#include "runtime/fields/field.h"
#include "runtime/fields/values.h"

namespace annulus {
namespace {

// How long a context without a known end is taken to become.
constexpr int64_t kTokensGuessed = int64_t{1} << 17;

// By KV head: the blocks that a layer keeps if the context is KV-efficient, else those that its
// last query reads. What lists say is not known yet: all.
std::vector<int64_t> BlocksNeeded(const ContextSpec& spec, const Retention& retention, int layer) {
  const Pattern& pattern = retention.pattern(layer);
  const int64_t tokens = spec.tokens_expected > 0 ? spec.tokens_expected : kTokensGuessed;
  std::vector<int64_t> blocks(static_cast<size_t>(spec.kv_heads), BlocksOf(tokens));
  if (!pattern.list_names().empty()) return blocks;
  for (int head = 0; head < spec.kv_heads; ++head) {
    if (const int same = pattern.HeadClass(head); same != head) {
      blocks[head] = blocks[same];
    } else if (spec.kv_efficient) {
      blocks[head] -= retention.Gone(layer, head, HorizonOf(tokens - 1)).size();
    } else {
      blocks[head] = 0;
      std::vector<TileRun> row;
      pattern.Row(head, {tokens - 1, tokens}, tokens, &row);
      for (const TileRun& run : row) blocks[head] += run.blocks.count;
    }
  }
  return blocks;
}

// Whether heads are cut without a look at patterns.
bool IsCutEvenly(const ContextSpec& spec, int groups) {
  return groups == 1 || spec.patterns.empty();
}

}  // namespace

absl::Status ValidateSpec(const ContextSpec& spec) {
  ANNULUS_RETURN_IF_ERROR(CheckSpecFields(spec));
  return Retention::Of(spec).status();
}

absl::Status CheckSpecFields(const ContextSpec& spec) {
  return CheckFields(spec, FieldPath());
}

ContextSpec WithoutPatterns(const ContextSpec& spec) {
  ContextSpec copy;
  ForEachField<ContextSpec>([&](const auto& field, size_t) {
    if (field.name != "patterns") copy.*field.member = spec.*field.member;
  });
  return copy;
}

HeadMap HeadMapOf(const ContextSpec& spec, int world, const Retention& retention) {
  const int groups = MeshOf(spec.placement, world).head_groups;
  if (IsCutEvenly(spec, groups)) return HeadMap::Even(groups, spec.heads, spec.kv_heads);
  std::vector<int64_t> weights(static_cast<size_t>(spec.kv_heads));
  std::map<int64_t, std::vector<int64_t>> of_pattern;  // by id
  for (int layer = 0; layer < std::ssize(spec.patterns); ++layer) {
    const auto [at, is_new] = of_pattern.try_emplace(retention.pattern(layer).id());
    if (is_new) at->second = BlocksNeeded(spec, retention, layer);
    for (size_t head = 0; head < weights.size(); ++head) weights[head] += at->second[head];
  }
  return HeadMap::ByWeight(groups, spec.heads, weights);
}

HeadMap HeadMapOf(const ContextSpec& spec, int world) {
  const int groups = MeshOf(spec.placement, world).head_groups;
  if (IsCutEvenly(spec, groups)) return HeadMap::Even(groups, spec.heads, spec.kv_heads);
  const absl::StatusOr<Retention> retention = Retention::Of(spec);
  ANNULUS_CHECK(retention.ok());
  return HeadMapOf(spec, world, *retention);
}

Layout LayoutOf(const ContextSpec& spec, int world, const HeadMap& heads, int64_t tokens) {
  const int64_t length =
      spec.partition.kind == PartitionKind::kBlockCyclic ? tokens : spec.tokens_expected;
  return Layout::Of(spec.placement, world, heads, spec.partition, BlocksOf(length));
}

Layout LayoutOf(const ContextSpec& spec, int world, int64_t tokens) {
  return LayoutOf(spec, world, HeadMapOf(spec, world), tokens);
}

std::string LayerName(const ContextSpec& spec, int layer) {
  if (layer < spec.layers) return absl::StrCat("layer ", layer);
  const Track& track = spec.tracks[static_cast<size_t>(layer / spec.layers - 1)];
  return absl::StrCat("layer ", layer, " (track ", Quoted(track.name), " of layer ",
                      layer % spec.layers, ")");
}

std::vector<ContextSpec> TrackSpecs(const ContextSpec& spec) {
  std::vector<ContextSpec> specs;
  for (const Track& track : spec.tracks) {
    PartitionSpec partition = spec.partition;
    partition.unit_blocks = std::max<int64_t>(1, partition.unit_blocks / track.ratio);
    specs.push_back({.heads = track.heads,
                     .kv_heads = track.heads,
                     .head_dim = track.dim,
                     .v_head_dim = track.dim,
                     .v_is_k_prefix = true,
                     .dtype = track.dtype,
                     .partition = partition,
                     .tokens_expected = (spec.tokens_expected + track.ratio - 1) / track.ratio});
  }
  return specs;
}

Layout LayoutOfLayer(const ContextSpec& spec, const std::vector<ContextSpec>& tracks, int layer,
                     int world, const HeadMap& heads, int64_t tokens) {
  if (layer < spec.layers) return LayoutOf(spec, world, heads, tokens);
  return LayoutOf(SpecOfLayer(spec, tracks, layer), world, tokens);
}

Problem ProblemOf(const ContextSpec& spec, Layout kv, TokenRange q, int64_t kv_tokens,
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
          .kv = std::move(kv)};
}

const std::string& PatternOf(const ContextSpec& spec, int layer, const std::string& asked) {
  static const std::string& causal = *new std::string("causal");
  if (!asked.empty()) return asked;
  if (spec.patterns.empty()) return causal;
  return spec.patterns.size() == 1 ? spec.patterns[0]
                                   : spec.patterns[static_cast<size_t>(layer % spec.layers)];
}

int64_t TokenBytes(const ContextSpec& spec) {
  const int dims = spec.head_dim + (spec.v_is_k_prefix ? 0 : spec.v_head_dim);
  return dims * static_cast<int64_t>(SizeOf(spec.dtype));
}

int64_t DenseBytes(const ContextSpec& spec, const HeadMap& heads,
                   const std::vector<int64_t>& tokens) {
  int64_t heads_held = 0;  // of a block, over the ranks that have it
  for (int group = 0; group < heads.groups(); ++group) heads_held += CountOf(heads.KvHeads(group));
  int64_t bytes = 0;
  const std::vector<ContextSpec> tracks = TrackSpecs(spec);
  for (int layer = 0; layer < std::ssize(tokens); ++layer) {
    const ContextSpec& of_layer = SpecOfLayer(spec, tracks, layer);
    const int64_t heads = layer < spec.layers ? heads_held : of_layer.kv_heads;
    bytes += BlocksOf(tokens[layer]) * heads * PageBytes(of_layer);
  }
  return bytes;
}

int64_t PageBytes(const ContextSpec& spec) {
  return kBlockTokens * TokenBytes(spec);
}

}  // namespace annulus
