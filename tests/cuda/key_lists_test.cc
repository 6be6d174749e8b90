// How batches whose pattern names lists are cut for a GPU; needs none.
#include <algorithm>
#include <utility>
#include <vector>

#include "attention/key_list.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/cuda/work_lists.h"

namespace annulus {
namespace {

// Of blocks of 64, or of tokens, with as good a chance each, by block of queries or by query.
KeyListData SomeList(Rng& rng, int heads, int64_t tokens) {
  KeyListData data;
  const bool of_tokens = rng.Below(4) == 0;
  data.unit = of_tokens ? KeyListData::Unit::kTokens : KeyListData::Unit::kBlocks;
  data.rows = of_tokens ? KeyListData::Rows::kToken : KeyListData::Rows::kBlock;
  data.heads = heads;
  data.begin = {0};
  const int64_t rows = of_tokens ? tokens : BlocksOf(tokens);
  const uint64_t one_of = rng.Below(2) == 0 ? 2 : 9;
  for (int64_t row = 0; row < heads * rows; ++row) {
    for (int64_t k = 0; k < rows; ++k) {
      if (rng.Below(one_of) == 0) data.keys.push_back(static_cast<int32_t>(k));
    }
    data.begin.push_back(static_cast<int64_t>(data.keys.size()));
  }
  return data;
}

TEST_CASE("rows see through tiles what their lists show them, whatever heads these are for") {
  const uint64_t seed = GENERATE(range(1, 30));
  CAPTURE(seed);
  Rng rng(seed);
  const auto group = static_cast<int>(rng.Between(1, 5));
  const char* patterns[] = {"list(x)", "causal & list(x)", "list(x) | window(90)"};
  Shapes shapes(patterns[rng.Below(3)], 2 * group, 2, rng.Below(2) == 0 ? 64 : 128);
  const int64_t tokens = 64 * 60 + rng.Between(0, 63);
  const int heads[] = {1, 2, 2 * group};
  const NamedList list{"x", *KeyList::Make(SomeList(rng, heads[seed % 3], tokens))};
  shapes.pattern = *shapes.pattern.Bind({&list, 1}, 2 * group);
  shapes.Add(tokens, rng.Between(1, 200));
  CheckRows(shapes, SomeSlots(rng.Below(3) != 0));
}

TEST_CASE("query blocks whose lists have little in common are not computed together") {
  for (const bool alike : {false, true}) {
    for (const int group : {1, 4}) {
      Shapes shapes("list(x)", group, 1);
      const int64_t blocks = 400;
      KeyListData data;
      data.rows = KeyListData::Rows::kBlock;
      data.begin = {0};
      Rng rng(1);
      for (int64_t row = 0; row < blocks; ++row) {
        for (int64_t k = alike ? row / 100 : 0; k < blocks; ++k) {
          if (alike ? k % 5 == 0 : rng.Below(10) == 0) {
            data.keys.push_back(static_cast<int32_t>(k));
          }
        }
        data.begin.push_back(static_cast<int64_t>(data.keys.size()));
      }
      const auto cells = static_cast<int64_t>(data.keys.size());
      const NamedList list{"x", *KeyList::Make(std::move(data))};
      shapes.pattern = *shapes.pattern.Bind({&list, 1}, group);
      shapes.Add(64 * blocks, 64 * blocks);
      cuda::WorkList work;
      work.Make(shapes.batch, SomeSlots(/*hopper=*/true));
      CheckSegments(work);
      int64_t steps = 0;
      for (const cuda::Segment& segment : work.segments()) steps += segment.blocks;
      CAPTURE(alike, group, cells, steps);
      if (alike) CHECK(steps <= cells * group / 3 + cells / 20);
      // Three heads together and one apart, or one alone; none sees more than its own.
      if (!alike) CHECK(steps <= cells * (group == 4 ? 2 : 1) + cells / 100);
      CHECK(work.Measured(0));
      const auto kernels = work.launches();
      CHECK(std::any_of(kernels.begin(), kernels.end(), [](const cuda::Launch& launch) {
              return launch.kernel == cuda::Kernel::kSingle90;
            }) == !alike);
    }
  }
}

}  // namespace
}  // namespace annulus
