// Layout: who holds which (KV head, block) of a context: a mesh of `head_groups` × `token_groups`
// ranks. Rank = token_group · head_groups + head_group: the ranks of one token group (inside a
// node, where links are fast) share its tokens and split the heads; ranks of one head group form
// a ring over the tokens. head_groups = 1 is plain token sharding, token_groups = 1 head sharding
// (Ulysses, S2 over heads). Ranks beyond the mesh hold nothing.
// Immutable value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "annulus/placement.h"
#include "sharding/head_map.h"
#include "sharding/partition.h"

namespace annulus {

// The mesh of `world` ranks: head_groups × token_groups = world, head_groups the largest divisor
// ≤ √world (so a mesh of prime world is 1 × world).
struct MeshShape {
  int head_groups = 1;
  int token_groups = 1;
  friend bool operator==(const MeshShape&, const MeshShape&) = default;
};
MeshShape MeshOf(int world);
MeshShape MeshOf(Placement placement, int world);

class Layout {
 public:
  // `heads` has a group for each of the mesh's.
  Layout(MeshShape mesh, HeadMap heads, Partition tokens);

  static Layout Of(Placement placement, int world, HeadMap heads, PartitionSpec spec,
                   int64_t blocks);
  // With heads cut evenly.
  static Layout Of(Placement placement, int world, int heads, int kv_heads, PartitionSpec spec,
                   int64_t blocks);
  static Layout Tokens(int world, int heads, int kv_heads, PartitionSpec spec, int64_t blocks);

  int world() const { return mesh_.head_groups * mesh_.token_groups; }
  const MeshShape& mesh() const { return mesh_; }
  const Partition& tokens() const { return tokens_; }  // over token groups
  int heads() const { return heads_.heads(); }
  int kv_heads() const { return heads_.kv_heads(); }

  int HeadGroup(int rank) const { return rank % mesh_.head_groups; }
  int TokenGroup(int rank) const { return rank / mesh_.head_groups; }
  int Rank(int head_group, int token_group) const {
    return token_group * mesh_.head_groups + head_group;
  }

  // Query heads this rank computes, and the KV heads they read: what it holds, maybe beside others.
  // Valid while a copy of the layout, or of its HeadMap, lives.
  const HeadRanges& QueryHeads(int rank) const { return heads_.QueryHeads(HeadGroup(rank)); }
  const HeadRanges& KvHeads(int rank) const { return heads_.KvHeads(HeadGroup(rank)); }
  BlockSet Blocks(int rank) const;  // blocks it holds of each of those KV heads

  // The rank that gives (kv_head, blocks of token group g) to others: of several holders the first.
  int Source(int kv_head, int token_group) const;

  friend bool operator==(const Layout&, const Layout&) = default;

 private:
  MeshShape mesh_;
  HeadMap heads_;
  Partition tokens_;
};

}  // namespace annulus
