#include "sharding/partition.h"

#include <set>

#include <algorithm>
#include <numeric>

#include "base/rng.h"
#include "sharding/layout.h"
#include "tests/catch.h"

namespace annulus {
namespace {

TEST_CASE("a partition gives every block exactly one owner") {
  const uint64_t seed = 20240711;
  CAPTURE(seed);
  Rng rng(seed);
  for (int round = 0; round < 400; ++round) {
    const int worlds[] = {1, 2, 3, 4, 7, 64};
    const int world = worlds[rng.Below(6)];
    const int64_t first = rng.Below(3) == 0 ? 0 : rng.Between(0, 50);
    const int64_t blocks = rng.Between(0, rng.Below(2) == 0 ? 20 : 600);
    const PartitionKind kinds[] = {PartitionKind::kContiguous, PartitionKind::kZigzag,
                                   PartitionKind::kBlockCyclic};
    const PartitionSpec spec{kinds[rng.Below(3)], rng.Between(1, 9)};
    CAPTURE(round, world, first, blocks, spec.ToString());
    const Partition partition(spec, first, blocks, world);
    std::vector<int> owners(static_cast<size_t>(blocks), -1);
    int64_t least = blocks, most = 0;
    for (int rank = 0; rank < world; ++rank) {
      const BlockSet mine = partition.BlocksOf(rank);
      least = std::min(least, mine.size());
      most = std::max(most, mine.size());
      for (int64_t block : mine.ToVector()) {
        REQUIRE(block >= first);
        REQUIRE(block < first + blocks);
        REQUIRE(owners[block - first] == -1);
        REQUIRE(partition.Owner(block) == rank);
        owners[block - first] = rank;
      }
    }
    REQUIRE(std::count(owners.begin(), owners.end(), -1) == 0);
    if (spec.kind == PartitionKind::kBlockCyclic) {
      REQUIRE(most - least <= spec.unit_blocks);
    } else {
      REQUIRE(most - least <= 1);
    }
    // Owners of a run, against walking it.
    BlockRun run{rng.Between(0, first + blocks + 5), rng.Between(1, 700), rng.Between(1, 20)};
    std::vector<bool> marked(static_cast<size_t>(world)), expected(static_cast<size_t>(world));
    partition.MarkOwners(run, &marked);
    for (int64_t i = 0; i < run.count; ++i) {
      const int64_t block = run.first + i * run.step;
      if (block >= first && block < first + blocks) expected[owners[block - first]] = true;
    }
    CAPTURE(run.first, run.count, run.step);
    REQUIRE(marked == expected);
  }
}

TEST_CASE("zigzag pairs the first chunk with the last") {
  const Partition partition({PartitionKind::kZigzag, 1}, 0, 8, 2);
  CHECK(partition.BlocksOf(0).ToVector() == std::vector<int64_t>{0, 1, 6, 7});
  CHECK(partition.BlocksOf(1).ToVector() == std::vector<int64_t>{2, 3, 4, 5});
}

TEST_CASE("a partition costs few runs at any length") {
  const int64_t blocks = 10 * 1024 * 1024 / 64;
  for (int64_t unit : {1, 16, 64, 4096}) {
    const Partition partition({PartitionKind::kBlockCyclic, unit}, 0, blocks, 64);
    CHECK(partition.BlocksOf(5).runs().size() <= 64);
  }
}

TEST_CASE("partition names round trip and bad ones are refused by name") {
  for (const char* text : {"zigzag", "contiguous", "block-cyclic:1", "block-cyclic:64"}) {
    const auto spec = PartitionSpec::Parse(text);
    REQUIRE(spec.ok());
    CHECK(spec->ToString() == text);
  }
  CHECK(PartitionSpec::Parse("striped")->ToString() == "block-cyclic:1");
  for (const char* text :
       {"", "zig", "block-cyclic", "block-cyclic:", "block-cyclic:0", "block-cyclic:-1",
        "block-cyclic:+1", "block-cyclic: 4", "block-cyclic:99999999999999999999", "zigzag\n"}) {
    CAPTURE(text);
    const auto spec = PartitionSpec::Parse(text);
    REQUIRE(spec.status().code() == absl::StatusCode::kInvalidArgument);
    CHECK(spec.status().message().find('\n') == absl::string_view::npos);
  }
}

TEST_CASE("a mesh is as square as its world allows") {
  CHECK(MeshOf(1) == MeshShape{1, 1});
  CHECK(MeshOf(2) == MeshShape{1, 2});
  CHECK(MeshOf(4) == MeshShape{2, 2});
  CHECK(MeshOf(6) == MeshShape{2, 3});
  CHECK(MeshOf(7) == MeshShape{1, 7});
  CHECK(MeshOf(12) == MeshShape{3, 4});
  CHECK(MeshOf(64) == MeshShape{8, 8});
}

TEST_CASE("a layout's query heads are cut once and its KV heads cover them") {
  const uint64_t seed = 88;
  CAPTURE(seed);
  Rng rng(seed);
  for (int round = 0; round < 300; ++round) {
    const int kv_heads = static_cast<int>(rng.Between(1, 6));
    const int group = static_cast<int>(rng.Between(1, 4));
    const MeshShape mesh{static_cast<int>(rng.Between(1, 9)), static_cast<int>(rng.Between(1, 5))};
    std::vector<int64_t> weights;
    for (int head = 0; head < kv_heads; ++head) weights.push_back(int64_t{1} << rng.Below(20));
    const int heads = kv_heads * group;
    const Layout layout(
        mesh,
        rng.Below(2) == 0 ? HeadMap::Even(mesh.head_groups, heads, kv_heads)
                          : HeadMap::ByWeight(mesh.head_groups, heads, weights),
        Partition({PartitionKind::kZigzag, 1}, 0, rng.Between(0, 40), mesh.token_groups));
    CAPTURE(round, kv_heads, group, mesh.head_groups, mesh.token_groups);
    REQUIRE(layout.world() == mesh.head_groups * mesh.token_groups);
    std::vector<int> served(static_cast<size_t>(kv_heads * group * mesh.token_groups));
    for (int rank = 0; rank < layout.world(); ++rank) {
      REQUIRE(layout.Rank(layout.HeadGroup(rank), layout.TokenGroup(rank)) == rank);
      const HeadRanges &query = layout.QueryHeads(rank), &kv = layout.KvHeads(rank);
      REQUIRE(query.empty() == kv.empty());
      for (const HeadRanges* ranges : {&query, &kv}) {
        int end = -1;
        for (const HeadRange& range : *ranges) {
          REQUIRE(range.count >= 1);
          REQUIRE(range.first > end);
          end = range.end();
        }
        REQUIRE(end <= (ranges == &kv ? kv_heads : heads));
      }
      std::set<int> read;
      ForEachHead(query, [&](int head) {
        ++served[layout.TokenGroup(rank) * heads + head];
        read.insert(head / group);
      });
      REQUIRE(std::ssize(read) == CountOf(kv));
      ForEachHead(kv, [&](int head) { REQUIRE(read.count(head) == 1); });
      if (query.empty()) REQUIRE(layout.Blocks(rank).empty());
    }
    REQUIRE(std::count(served.begin(), served.end(), 1) == static_cast<int64_t>(served.size()));
    for (int head = 0; head < kv_heads; ++head) {
      for (int token_group = 0; token_group < mesh.token_groups; ++token_group) {
        const int source = layout.Source(head, token_group);
        REQUIRE(layout.TokenGroup(source) == token_group);
        REQUIRE(Contains(layout.KvHeads(source), head));
      }
    }
  }
}

// The fullest group's weight over the mean.
double Evenness(const HeadMap& map, const std::vector<int64_t>& weights) {
  int64_t most = 0, total = 0;
  for (int group = 0; group < map.groups(); ++group) {
    int64_t load = 0;
    ForEachHead(map.KvHeads(group), [&](int head) { load += weights[head]; });
    most = std::max(most, load);
    total += load;
  }
  return static_cast<double>(most) * map.groups() / static_cast<double>(total);
}

TEST_CASE("heads by weight are held evenly, dense ones by as many groups as it takes") {
  // What s2(64,16,16,dense_heads=2) keeps of 8K to 1M tokens.
  for (const int64_t blocks : {128, 512, 2048, 16384}) {
    const int64_t strided = 16 + (blocks - 16) / 16;
    const std::vector<int64_t> weights = {strided, strided, strided, strided,
                                          strided, strided, blocks,  blocks};
    for (const int groups : {1, 2, 3, 4, 7, 8}) {
      for (const int heads : {32, 64}) {
        const HeadMap map = HeadMap::ByWeight(groups, heads, weights);
        CAPTURE(blocks, groups, heads);
        CHECK(Evenness(map, weights) <= 1.05);
      }
    }
  }
  // Nothing is held twice where it need not be.
  const HeadMap two = HeadMap::ByWeight(2, 32, {1, 1, 1, 1, 1, 1, 20, 20});
  CHECK(CountOf(two.KvHeads(0)) + CountOf(two.KvHeads(1)) == 8);
  // Of equal weights the even cut comes out, whatever it is worth.
  for (const int groups : {1, 2, 3, 4, 7, 40}) {
    const HeadMap even = HeadMap::Even(groups, 32, 8);
    CHECK(HeadMap::ByWeight(groups, 32, std::vector<int64_t>(8, 77)) == even);
    CHECK(HeadMap::ByWeight(groups, 32, std::vector<int64_t>(8, 0)) == even);
  }
}

TEST_CASE("placements make their meshes") {
  CHECK(Layout::Of(Placement::kTokens, 6, 8, 4, {}, 10).mesh() == MeshShape{1, 6});
  CHECK(Layout::Of(Placement::kHeads, 6, 8, 4, {}, 10).mesh() == MeshShape{6, 1});
  CHECK(Layout::Of(Placement::kMesh, 6, 8, 4, {}, 10).mesh() == MeshShape{2, 3});
  for (Placement placement : {Placement::kTokens, Placement::kHeads, Placement::kMesh}) {
    CHECK(*ParsePlacement(Name(placement)) == placement);
  }
  CHECK(ParsePlacement("token").status().code() == absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace annulus
