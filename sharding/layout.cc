#include "sharding/layout.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace annulus {

absl::string_view Name(Placement placement) {
  switch (placement) {
    case Placement::kTokens:
      return "tokens";
    case Placement::kHeads:
      return "heads";
    case Placement::kMesh:
      return "mesh";
  }
  return "unknown";
}

absl::StatusOr<Placement> ParsePlacement(absl::string_view text) {
  for (Placement placement : {Placement::kTokens, Placement::kHeads, Placement::kMesh}) {
    if (text == Name(placement)) return placement;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "placement \"", absl::CHexEscape(text.substr(0, 64)), "\": expected tokens, heads or mesh"));
}

MeshShape MeshOf(int world) {
  ANNULUS_CHECK(world >= 1);
  int head_groups = 1;
  for (int divisor = 2; divisor <= world / divisor; ++divisor) {
    if (world % divisor == 0) head_groups = divisor;
  }
  return {head_groups, world / head_groups};
}

Layout::Layout(MeshShape mesh, int heads, int kv_heads, Partition tokens)
    : mesh_(mesh), heads_(heads), kv_heads_(kv_heads), tokens_(std::move(tokens)) {
  ANNULUS_CHECK(mesh.head_groups >= 1 && mesh.token_groups == tokens_.world());
  ANNULUS_CHECK(kv_heads >= 1 && heads >= 1 && heads % kv_heads == 0);
}

Layout Layout::Of(Placement placement, int world, int heads, int kv_heads, PartitionSpec spec,
                  int64_t blocks) {
  MeshShape mesh{1, world};
  if (placement == Placement::kHeads) mesh = {world, 1};
  if (placement == Placement::kMesh) mesh = MeshOf(world);
  return Layout(mesh, heads, kv_heads, Partition(spec, 0, blocks, mesh.token_groups));
}

Layout Layout::Tokens(int world, int heads, int kv_heads, PartitionSpec spec, int64_t blocks) {
  return Of(Placement::kTokens, world, heads, kv_heads, spec, blocks);
}

HeadRange Layout::QueryHeads(int rank) const {
  const int group = HeadGroup(rank);
  const int size = heads_ / mesh_.head_groups;
  const int longer = heads_ % mesh_.head_groups;  // this many groups have one head more
  return {group * size + std::min(group, longer), size + (group < longer ? 1 : 0)};
}

HeadRange Layout::KvHeads(int rank) const {
  const HeadRange query = QueryHeads(rank);
  const int group = heads_ / kv_heads_;
  if (query.count == 0) return {kv_heads_, 0};
  const int first = query.first / group;
  return {first, (query.end() - 1) / group + 1 - first};
}

BlockSet Layout::Blocks(int rank) const {
  if (KvHeads(rank).count == 0) return {};
  return tokens_.BlocksOf(TokenGroup(rank));
}

int Layout::Source(int kv_head, int token_group) const {
  const int query_head = kv_head * (heads_ / kv_heads_);
  int head_group = 0;
  while (QueryHeads(Rank(head_group, token_group)).end() <= query_head) ++head_group;
  return Rank(head_group, token_group);
}

}  // namespace annulus
