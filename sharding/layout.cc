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
      "placement: \"", absl::CHexEscape(text.substr(0, 64)), "\"; expected tokens, heads or mesh"));
}

MeshShape MeshOf(int world) {
  ANNULUS_CHECK(world >= 1);
  int head_groups = 1;
  for (int divisor = 2; divisor <= world / divisor; ++divisor) {
    if (world % divisor == 0) head_groups = divisor;
  }
  return {head_groups, world / head_groups};
}

MeshShape MeshOf(Placement placement, int world) {
  if (placement == Placement::kHeads) return {world, 1};
  return placement == Placement::kMesh ? MeshOf(world) : MeshShape{1, world};
}

Layout::Layout(MeshShape mesh, HeadMap heads, Partition tokens)
    : mesh_(mesh), heads_(std::move(heads)), tokens_(std::move(tokens)) {
  ANNULUS_CHECK(mesh.head_groups == heads_.groups() && mesh.token_groups == tokens_.world());
}

Layout Layout::Of(Placement placement, int world, HeadMap heads, PartitionSpec spec,
                  int64_t blocks) {
  const MeshShape mesh = MeshOf(placement, world);
  return Layout(mesh, std::move(heads), Partition(spec, 0, blocks, mesh.token_groups));
}

Layout Layout::Of(Placement placement, int world, int heads, int kv_heads, PartitionSpec spec,
                  int64_t blocks) {
  const int groups = MeshOf(placement, world).head_groups;
  return Of(placement, world, HeadMap::Even(groups, heads, kv_heads), spec, blocks);
}

Layout Layout::Tokens(int world, int heads, int kv_heads, PartitionSpec spec, int64_t blocks) {
  return Of(Placement::kTokens, world, heads, kv_heads, spec, blocks);
}

BlockSet Layout::Blocks(int rank) const {
  if (KvHeads(rank).empty()) return {};
  return tokens_.BlocksOf(TokenGroup(rank));
}

int Layout::Source(int kv_head, int token_group) const {
  return Rank(heads_.FirstHolder(kv_head), token_group);
}

}  // namespace annulus
