// How batches are cut for a GPU; needs none.
#include "attention/cuda/work_list.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "attention/cuda/longest_first.h"
#include "base/rng.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr int kSlots = 264;

cuda::Slots SomeSlots() {
  cuda::Slots slots;
  for (const int dim : {64, 128, 256}) {
    for (const cuda::Kernel kernel :
         {cuda::Kernel::kSimple, cuda::Kernel::kStream, cuda::Kernel::kPanel}) {
      slots.Set(kernel, dim, dim > 128 ? kSlots / 2 : kSlots);
    }
  }
  return slots;
}

// Problems without memory: lists are made of shapes alone.
struct Shapes {
  explicit Shapes(const std::string& text, int heads, int kv_heads, int dim = 128)
      : pattern(*Pattern::Parse(text, kv_heads)), heads(heads), kv_heads(kv_heads), dim(dim) {}

  void Add(int64_t tokens, int64_t queries) {
    tables.push_back(
        std::make_unique<KvTable>(DType::kBF16, 0, kv_heads, dim, dim, BlocksOf(tokens)));
    keys.push_back(std::make_unique<BlockSet>(BlockSet::Range(0, BlocksOf(tokens))));
    AttendArgs args;
    args.q = TensorView::Contiguous(nullptr, DType::kBF16, queries, heads, dim);
    args.q_ranges = {{tokens - queries, tokens}};
    args.heads = {0, heads};
    args.kv_tokens = tokens;
    args.group = heads / kv_heads;
    args.kv = tables.back().get();
    args.pattern = &pattern;
    args.keys = keys.back().get();
    args.into = {nullptr, nullptr, queries, heads, dim};
    batch.push_back(args);
  }

  Pattern pattern;
  int heads;
  int kv_heads;
  int dim;
  std::vector<std::unique_ptr<KvTable>> tables;
  std::vector<std::unique_ptr<BlockSet>> keys;
  std::vector<AttendArgs> batch;
};

// Every tile's blocks must be in its segments, each once; how many segments there are.
size_t CheckSegments(const cuda::WorkList& list) {
  std::vector<std::vector<std::pair<int, int>>> parts(list.tiles().size());
  for (const cuda::Segment& segment : list.segments()) {
    REQUIRE(segment.blocks > 0);
    parts[static_cast<size_t>(segment.tile)].push_back({segment.block_first, segment.blocks});
  }
  for (size_t t = 0; t < parts.size(); ++t) {
    const cuda::Tile& tile = list.tiles()[t];
    std::sort(parts[t].begin(), parts[t].end());
    REQUIRE(std::ssize(parts[t]) == tile.segments);
    int blocks = 0;
    for (const auto& [first, count] : parts[t]) {
      REQUIRE(first == blocks);
      blocks += count;
    }
    for (int r = tile.run_first; r < tile.run_end; ++r) {
      blocks -= list.runs()[static_cast<size_t>(r)].count;
    }
    REQUIRE(blocks == 0);
  }
  return list.segments().size();
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
}

TEST_CASE("panels are cut only where the longest would end after all others") {
  cuda::WorkList list;
  for (const char* pattern : {"causal", "full"}) {
    INFO(pattern);
    Shapes many(pattern, 16, 16);
    many.Add(1 << 14, 1 << 14);
    list.Make(many.batch, SomeSlots());
    CHECK(CheckSegments(list) == list.tiles().size());
    CHECK(list.split_tiles().empty());
  }
  Shapes few("full", 2, 1);
  few.Add(1 << 16, 64);
  list.Make(few.batch, SomeSlots());
  CHECK(list.tiles().size() == 1);
  CHECK(CheckSegments(list) == 32);  // of the smallest size that pays
}

int64_t End(std::vector<int64_t> sizes, int64_t most, int slots, int64_t overhead) {
  std::vector<int64_t> parts;
  for (const int64_t size : sizes) {
    const int64_t count = cuda::PartCount(size, most);
    for (int64_t i = 0; i < count; ++i) {
      parts.push_back(cuda::PartBegin(size, count, i + 1) - cuda::PartBegin(size, count, i));
    }
  }
  std::sort(parts.rbegin(), parts.rend());
  std::vector<int64_t> ends(static_cast<size_t>(slots), 0);
  for (const int64_t part : parts) *std::min_element(ends.begin(), ends.end()) += part + overhead;
  return *std::max_element(ends.begin(), ends.end());
}

TEST_CASE("parts are as large as they may be for all to end together") {
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
  const int64_t most = cuda::LargestPart(sizes, slots, overhead, least);
  int64_t total = overhead * count;
  for (const int64_t size : sizes) total += size;
  const int64_t longest = *std::max_element(sizes.begin(), sizes.end());
  CHECK(most >= std::min(least, longest));
  const int64_t enough = (total / slots + 1) * 102 / 100;
  const int64_t end = End(sizes, most, slots, overhead);
  const int64_t uncut = End(sizes, longest, slots, overhead);
  if (uncut <= enough) CHECK(most >= longest);
  CHECK(end <= std::max(enough, std::min(uncut, End(sizes, least, slots, overhead))));
}

}  // namespace
}  // namespace annulus
