// How batches are cut for a GPU; needs none.
#include "attention/cuda/work_list.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "attention/cuda/longest_first.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/cuda/work_lists.h"

namespace annulus {
namespace {

TEST_CASE("rows see through tiles what their pattern lets them see, each key once") {
  const uint64_t seed = GENERATE(range(1, 120));
  CAPTURE(seed);
  Rng rng(seed);
  const char* patterns[] = {"causal",
                            "full",
                            "window(100)",
                            "s2(64, 2, 3)",
                            "s2(24, 1, 4)",
                            "causal & (sink(70) | window(20))",
                            "window(7) & sink(4)",
                            "heads(0: window(70); 1: s2(64, 1, 2))"};
  const int dims[] = {64, 128, 256, 80};
  const auto group = static_cast<int>(rng.Between(1, 5));
  Shapes shapes(patterns[rng.Below(8)], 2 * group, 2, dims[rng.Below(4)]);
  const int64_t tokens = rng.Between(40, 700);
  shapes.Add(tokens, rng.Between(1, tokens));
  AttendArgs& args = shapes.batch[0];
  if (rng.Below(2) == 0) {  // some of the blocks
    *shapes.keys[0] = BlockSet::Range(rng.Between(0, 1), rng.Between(1, BlocksOf(tokens)));
  }
  if (args.q.tokens > 40 && rng.Below(2) == 0) {  // queries with a gap
    const int64_t first = args.q_ranges[0].begin;
    args.q_ranges = {{first, first + 11}, {first + 35, tokens}};
    args.q.tokens = args.into.rows = 11 + tokens - first - 35;
  }
  CheckRows(shapes, SomeSlots(rng.Below(3) != 0));
}

TEST_CASE("latent heads run on Hopper's kernel where all their values lie in their keys") {
  static const std::byte bytes[2] = {};
  Shapes shapes("causal", 128, 1, 576);
  shapes.Add(6400, 1);
  KvTable latent(DType::kBF16, 0, 1, 576, 512, 100);
  latent.set_memory(MemoryKind::kDevice);
  for (int64_t block = 0; block < 100; ++block) latent.Set(0, block, {bytes, bytes, 576, 576});
  AttendArgs& args = shapes.batch[0];
  args.kv = &latent;
  args.into.v_head_dim = 512;
  const auto kernel = [&](bool hopper) {
    cuda::WorkList list;
    list.Make(shapes.batch, SomeSlots(hopper));
    REQUIRE(list.launches().size() == 1);
    CheckSegments(list);
    return list.launches()[0];
  };
  const cuda::Launch launch = kernel(true);
  CHECK(launch.kernel == cuda::Kernel::kLatent90);
  CHECK(launch.dim == 576);
  CHECK(launch.count >= 20);  // two tiles of 64 heads, in parts of a few blocks
  // Both read the same blocks at the same time.
  cuda::WorkList list;
  list.Make(shapes.batch, SomeSlots(true));
  for (int i = 0; i < launch.count; i += 2) {
    const cuda::Segment& a = list.segments()[static_cast<size_t>(launch.first + i)];
    const cuda::Segment& b = list.segments()[static_cast<size_t>(launch.first + i + 1)];
    CHECK(a.tile != b.tile);
    CHECK(a.block_first == b.block_first);
    CHECK(a.blocks == b.blocks);
  }
  CHECK(kernel(false).kernel == cuda::Kernel::kWide);
  latent.Set(0, 70, {bytes, bytes + 1, 576, 576});
  CHECK(kernel(true).kernel == cuda::Kernel::kWide);
  latent.Set(0, 70, {bytes, bytes, 576, 568});
  CHECK(kernel(true).kernel == cuda::Kernel::kWide);
  KvTable shorter(DType::kBF16, 0, 1, 576, 448, 100);
  args.kv = &shorter;
  CHECK(kernel(true).kernel == cuda::Kernel::kWide);
}

TEST_CASE("rows that share a list with no others have a kernel of one half on Hopper") {
  const auto kernel = [](int64_t queries, int group, int dim) {
    Shapes shapes("causal", 4 * group, 4, dim);
    shapes.Add(64 * 30, queries);
    cuda::WorkList list;
    list.Make(shapes.batch, SomeSlots(/*hopper=*/true));
    CheckSegments(list);
    REQUIRE(list.launches().size() == 1);
    return list.launches()[0].kernel;
  };
  CHECK(kernel(64, 1, 128) == cuda::Kernel::kSingle90);
  CHECK(kernel(32, 2, 64) == cuda::Kernel::kSingle90);
  CHECK(kernel(33, 2, 64) == cuda::Kernel::kPanel90);   // two halves
  CHECK(kernel(90, 1, 128) == cuda::Kernel::kPanel90);  // of two blocks
  CHECK(kernel(64, 1, 256) == cuda::Kernel::kPanel90);
  CHECK(kernel(16, 1, 128) == cuda::Kernel::kStream);
}

TEST_CASE("many problems over one context go head by head") {
  Shapes shapes("full", 3, 3);
  for (int i = 0; i < 1000; ++i) shapes.Add(64 * 2000, 64);
  for (AttendArgs& args : shapes.batch) args.kv = shapes.batch[0].kv;
  cuda::WorkList list;
  list.Make(shapes.batch, SomeSlots(/*hopper=*/true));
  REQUIRE(list.segments().size() >= 3000);
  int last = 0;
  for (const cuda::Segment& segment : list.segments()) {
    const int head = list.tiles()[static_cast<size_t>(segment.tile)].kv_head;
    REQUIRE(head >= last);
    last = head;
  }
}

TEST_CASE("lanes of decode batches are never more than run at once") {
  const uint64_t seed = GENERATE(range(1, 60));
  CAPTURE(seed);
  Rng rng(seed);
  const int kv_heads = static_cast<int>(rng.Between(1, 8));
  Shapes shapes("causal", kv_heads * 4, kv_heads, seed % 3 == 0 ? 256 : 128);
  const int64_t contexts = rng.Between(1, 40);
  for (int64_t i = 0; i < contexts; ++i) {
    shapes.Add(rng.Below(3) == 0 ? rng.Between(1, 1 << 20) : rng.Between(1, 1 << 13), 1);
  }
  cuda::WorkList list;
  list.Make(shapes.batch, SomeSlots());
  CheckSegments(list);
  const int slots = shapes.dim > 128 ? kSlots / 2 : kSlots;
  CHECK(std::ssize(list.lanes()) <= slots);
  int64_t most = 0;
  int64_t total = 0;
  for (const cuda::Lane& lane : list.lanes()) {
    int64_t blocks = 0;
    for (int i = lane.first; i < lane.end; ++i) {
      blocks += list.segments()[static_cast<size_t>(i)].blocks;
    }
    most = std::max(most, blocks);
    total += blocks;
  }
  // No lane has more blocks than its share of blocks and of what segments cost.
  CHECK(most <= std::max<int64_t>(8, total / slots + 4 * contexts * kv_heads / slots + 2));
}

TEST_CASE("a long context is as many lanes as run at once") {
  Shapes shapes("causal", 32, 8);
  shapes.Add(int64_t{1} << 20, 1);
  cuda::WorkList list;
  list.Make(shapes.batch, SomeSlots());
  CHECK(list.lanes().size() == kSlots);
  CheckSegments(list);
}

TEST_CASE("the parts of equally long contexts take turns with their blocks") {
  Shapes shapes("causal", 32, 8);
  shapes.Add(int64_t{64} * 2000 + 1, 1);
  cuda::WorkList list;
  list.Make(shapes.batch, SomeSlots());
  CHECK(CheckSegments(list) == kSlots);
  REQUIRE(list.lanes().size() == kSlots);
  for (const cuda::Lane& lane : list.lanes()) {
    CHECK(lane.end == lane.first + 1);
    CHECK(lane.start.step == kSlots / 8);
    CHECK(lane.start.block_first < lane.start.step);
    CHECK((lane.start.blocks == 60 || lane.start.blocks == 61));
  }
  // Not where others would wait for the longest part, nor where parts would be too short.
  for (const auto& [tokens, contexts] :
       {std::pair(int64_t{64} * 2000, 16), std::pair(64 * 12L, 1)}) {
    Shapes others("causal", 32, 8);
    for (int i = 0; i < contexts; ++i) others.Add(tokens, 1);
    list.Make(others.batch, SomeSlots());
    CheckSegments(list);
    for (const cuda::Segment& segment : list.segments()) CHECK(segment.step == 1);
  }
}

TEST_CASE("panels are cut only where the longest would end after all others") {
  cuda::WorkList list;
  Shapes causal("causal", 16, 16);
  causal.Add(1 << 14, 1 << 14);
  list.Make(causal.batch, SomeSlots());
  CHECK(CheckSegments(list) <= list.tiles().size() * 101 / 100);
  // 2,048 equal tiles on 264 slots: the last wave alone is cut.
  Shapes full("full", 16, 16);
  full.Add(1 << 14, 1 << 14);
  list.Make(full.batch, SomeSlots());
  CheckSegments(list);
  CHECK(list.split_tiles().size() > 100);
  CHECK(list.split_tiles().size() <= 264);
  Shapes few("full", 2, 1);
  few.Add(1 << 16, 64);
  list.Make(few.batch, SomeSlots());
  CHECK(list.tiles().size() == 1);
  CHECK(CheckSegments(list) == 32);  // of the smallest size that pays
}

int64_t End(const std::vector<int64_t>& parts, int slots, int64_t overhead) {
  std::vector<int64_t> ends(static_cast<size_t>(slots), 0);
  for (const int64_t part : parts) *std::min_element(ends.begin(), ends.end()) += part + overhead;
  return *std::max_element(ends.begin(), ends.end());
}

TEST_CASE("items are cut so that all slots end together, and no more than that needs") {
  const uint64_t seed = GENERATE(range(1, 80));
  CAPTURE(seed);
  Rng rng(seed);
  const int slots = static_cast<int>(rng.Between(1, 20));
  const int64_t overhead = rng.Between(0, 3);
  const int64_t least = rng.Between(1, 40);
  std::vector<int64_t> sizes;
  const int64_t count = rng.Between(1, 300);
  for (int64_t i = 0; i < count; ++i) {
    sizes.push_back(rng.Below(9) == 0 ? rng.Between(1, 2000) : rng.Between(1, 60));
  }
  std::sort(sizes.rbegin(), sizes.rend());
  int64_t total = overhead * count;
  for (const int64_t size : sizes) total += size;
  const std::vector<cuda::Part> parts = cuda::CutForSlots(sizes, slots, overhead, least);
  std::vector<int64_t> in_order;
  std::vector<int64_t> done(sizes.size(), 0);
  for (const cuda::Part& part : parts) {
    REQUIRE(part.begin == done[part.item]);
    REQUIRE(part.size > 0);
    if (part.size != sizes[part.item]) REQUIRE(part.size >= std::max<int64_t>(1, least / 2));
    done[part.item] += part.size;
    in_order.push_back(part.size);
  }
  CHECK(done == sizes);
  const int64_t even = total / slots + 1;
  const int64_t end = End(in_order, slots, overhead);
  const int64_t uncut = End(sizes, slots, overhead);
  if (uncut <= even * 102 / 100) CHECK(parts.size() == sizes.size());
  const auto cuts = static_cast<int64_t>(parts.size() - sizes.size());
  CHECK(cuts <= slots + total / std::max<int64_t>(least, 1));
  CHECK(end <=
        std::max(even * 102 / 100, even + 2 * overhead + cuts * overhead / slots + 2 * least));
}

TEST_CASE("the keys of long prefills on Hopper are measured, each block once") {
  Shapes shapes("causal", 8, 2);
  shapes.Add(40'000, 40'000);
  shapes.Add(40'000, 64);
  shapes.Add(1000, 1);
  shapes.batch[0].keys = shapes.keys[0].get();
  *shapes.keys[0] = BlockSet::Range(3, 500);
  cuda::WorkList list;
  list.Make(shapes.batch, SomeSlots(/*hopper=*/true));
  CHECK(list.Measured(0));
  CHECK_FALSE(list.Measured(1));  // of too few rows
  CHECK_FALSE(list.Measured(2));
  CHECK(list.key_heads_max() == 2);
  std::map<int64_t, int> seen;
  for (const cuda::KeyRun& run : list.key_runs()) {
    CHECK(run.problem == 0);
    CHECK(run.count >= 1);
    CHECK(run.count <= cuda::kKeyRunBlocks);
    for (int i = 0; i < run.count; ++i) ++seen[run.first + i * run.step];
  }
  CHECK(seen.size() == 500);
  CHECK(seen.begin()->first == 3);
  CHECK(std::all_of(seen.begin(), seen.end(), [](const auto& entry) { return entry.second == 1; }));
  list.Make(shapes.batch, SomeSlots());
  CHECK(list.key_runs().empty());
}

}  // namespace
}  // namespace annulus
