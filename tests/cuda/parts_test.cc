// How long prefills are cut for a GPU; needs none.
#include "attention/cuda/parts.h"

#include <utility>
#include <vector>

#include "attention/key_list.h"
#include "attention/pattern.h"
#include "base/rng.h"
#include "tests/catch.h"

namespace annulus {
namespace {

// list(x), of one head, whose rows are of these.
Pattern PatternOfList(KeyListData::Rows rows) {
  KeyListData data;
  data.rows = rows;
  data.begin = {0, 1};
  data.keys = {0};
  const NamedList list{"x", *KeyList::Make(std::move(data))};
  return *Pattern::Parse("list(x)", 1)->Bind({&list, 1}, 1);
}

TEST_CASE("parts of a long prefill are its rows, each once, cut between query blocks") {
  const uint64_t seed = GENERATE(range(1, 40));
  const bool by_query = GENERATE(false, true);
  CAPTURE(seed, by_query);
  const Pattern pattern =
      PatternOfList(by_query ? KeyListData::Rows::kToken : KeyListData::Rows::kBlock);
  Rng rng(seed);
  AttendArgs args;
  for (int64_t at = rng.Below(200);
       args.q.tokens < (int64_t{1} << 15) + 1000 * rng.Between(0, 90);) {
    const TokenRange range{at, at + rng.Between(1, 9000)};
    args.q_ranges.push_back(range);
    args.q.tokens += range.size();
    at = range.end + rng.Between(1, 300);
  }
  constexpr int kHeads = 3;
  constexpr int kDim = 16;
  std::vector<std::byte> none(1);
  std::vector<float> floats(1);
  args.q = TensorView::Contiguous(none.data(), DType::kBF16, args.q.tokens, kHeads, kDim);
  args.into = {floats.data(), floats.data(), args.q.tokens, kHeads, kDim};
  KvTable kv;
  kv.set_memory(MemoryKind::kDevice);
  args.kv = &kv;
  args.pattern = &pattern;

  int64_t row = 0;
  std::vector<TokenRange> ranges;
  const auto parts = cuda::PartsOf({&args, 1});
  CHECK(parts.size() > 1);
  CHECK(parts.size() < (by_query ? 9 : 6));
  for (const std::vector<AttendArgs>& part : parts) {
    REQUIRE(part.size() == 1);
    const AttendArgs& own = part[0];
    CHECK(own.q.data == args.q.Row(row, 0));
    CHECK(own.into.out == args.into.out + row * kHeads * kDim);
    CHECK(own.into.lse == args.into.lse + row * kHeads);
    CHECK(own.into.rows == own.q.tokens);
    int64_t rows = 0;
    for (const TokenRange& range : own.q_ranges) {
      REQUIRE(range.size() > 0);
      rows += range.size();
      if (!ranges.empty() && ranges.back().end == range.begin) {
        REQUIRE(range.begin % kBlockTokens == 0);
        ranges.back().end = range.end;
      } else {
        ranges.push_back(range);
      }
    }
    REQUIRE(rows == own.q.tokens);
    row += rows;
  }
  CHECK(row == args.q.tokens);
  CHECK(ranges == args.q_ranges);
}

TEST_CASE("queries that have lists of their own are cut into parts that are listed side by side") {
  const Pattern by_query = PatternOfList(KeyListData::Rows::kToken);
  const Pattern by_block = PatternOfList(KeyListData::Rows::kBlock);
  KvTable kv;
  kv.set_memory(MemoryKind::kDevice);
  AttendArgs args;
  args.kv = &kv;
  for (const auto& [tokens, parts] : {std::pair<int64_t, size_t>{500, 1}, {512, 2}, {4096, 8}}) {
    CAPTURE(tokens);
    args.q.tokens = tokens;
    args.q_ranges = {{0, tokens}};
    args.pattern = &by_query;
    CHECK(cuda::PartsOf({&args, 1}).size() == parts);
    args.pattern = &by_block;
    CHECK(cuda::PartsOf({&args, 1}).size() == 1);
  }
}

TEST_CASE("batches, short prefills and pages in host memory stay whole") {
  const Pattern pattern = *Pattern::Parse("causal", 1);
  KvTable on_device, on_host;
  on_device.set_memory(MemoryKind::kDevice);
  AttendArgs args;
  args.pattern = &pattern;
  args.q.tokens = 1 << 20;
  args.q_ranges = {{0, 1 << 20}};
  args.kv = &on_host;
  CHECK(cuda::PartsOf({&args, 1}).size() == 1);
  args.kv = &on_device;
  const AttendArgs both[] = {args, args};
  CHECK(cuda::PartsOf(both).size() == 1);
  CHECK(cuda::PartsOf(both)[0].size() == 2);
  args.q.tokens = 1000;
  args.q_ranges = {{0, 1000}};
  CHECK(cuda::PartsOf({&args, 1}).size() == 1);
}

}  // namespace
}  // namespace annulus
