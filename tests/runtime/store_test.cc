#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "attention/selector.h"
#include "base/rng.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"
#include "runtime/store/crc32c.h"
#include "runtime/store/kv_store.h"
#include "runtime/store/page_arena.h"
#include "tests/catch.h"
#include "tests/reliability.h"
#include "tests/runtime/inputs.h"

namespace annulus {
namespace {

using test::LayerKv;

Buffer Pack(const ContextSpec& spec, int world, int rank, const LayerKv& kv, TokenRange tokens) {
  return PackAppend(spec, LayoutOf(spec, world, tokens.end), rank, tokens,
                    kv.k.view().Tokens(tokens.begin, tokens.size()),
                    kv.V(spec).Tokens(tokens.begin, tokens.size()));
}

bool RowIs(const std::byte* row, const TensorView& expected, int64_t token, int64_t head) {
  return std::equal(row, row + expected.dim * 4, expected.Row(token, head));
}

TEST_CASE("CRC32C has the standard's check value") {
  CHECK(Crc32c("123456789", 9) == 0xE3069283);
}

TEST_CASE("A page without holders is zeroed, its memory used again or given back") {
  ByteCount bytes;
  SlabMemory memory(HostMemory());
  PageArena arena(1000, &memory, &bytes);
  std::vector<PageRef> pages;
  for (int i = 0; i < 50; ++i) {
    pages.push_back(arena.Allocate().value());
    CHECK(std::count(pages.back()->data, pages.back()->data + 1000, std::byte{0}) == 1000);
    std::fill_n(pages.back()->data, 1000, std::byte{0xAB});
  }
  CHECK(arena.pages_in_use() == 50);
  CHECK(bytes.bytes() == 50 * 1000);
  const PageRef holder = pages[8];  // the first of a slab of eight
  CHECK(holder.shared());
  pages.erase(pages.begin() + 1, pages.end());
  CHECK(arena.pages_in_use() == 2);
  CHECK(!holder.shared());
  CHECK(std::count(holder->data, holder->data + 1000, std::byte{0xAB}) == 1000);
  bool again = false;
  for (int i = 0; i < 60; ++i) {
    pages.push_back(arena.Allocate().value());
    const std::byte* data = pages.back()->data;
    again = again || (data > holder->data && data <= holder->data + 7 * 1000);  // of its slab
    CHECK(std::count(data, data + 1000, std::byte{0}) == 1000);
  }
  CHECK(again);
  CHECK(bytes.bytes() == 62 * 1000);
  pages.clear();
  CHECK(bytes.bytes() == 1000);
}

TEST_CASE("Slabs of arenas that share memory lie apart, aligned and zero, in few huge pages") {
  constexpr size_t kPage = 32'000;
  constexpr int kHeads = 8;
  constexpr int kPages = 40;
  ByteCount bytes;
  SlabMemory memory(HostMemory());
  std::deque<PageArena> arenas;
  for (int head = 0; head < kHeads; ++head) arenas.emplace_back(kPage, &memory, &bytes);
  for (int round = 0; round < 3; ++round) {  // the later ones find what the first has left
    if (round == 2) {
      memory.Expect(kPages * kHeads * kPage);
      for (PageArena& arena : arenas) arena.Expect(kPages);
    }
    std::vector<PageRef> pages;
    std::set<const std::byte*> places;
    std::set<uintptr_t> huge_pages;
    for (int i = 0; i < kPages * kHeads; ++i) {
      pages.push_back(arenas[static_cast<size_t>(i % kHeads)].Allocate().value());
      std::byte* data = pages.back()->data;
      REQUIRE(reinterpret_cast<uintptr_t>(data) % 64 == 0);
      REQUIRE(std::count(data, data + kPage, std::byte{0}) == kPage);
      std::fill_n(data, kPage, std::byte{0xAB});
      places.insert(data);
      huge_pages.insert(reinterpret_cast<uintptr_t>(data) >> 21);
    }
    const auto close = [](const std::byte* a, const std::byte* b) {
      return b - a < static_cast<ptrdiff_t>(kPage);
    };
    CHECK(std::adjacent_find(places.begin(), places.end(), close) == places.end());
    CHECK(huge_pages.size() <= 2 * kPages * kHeads * kPage / (size_t{2} << 20) + 12);
  }
  CHECK(bytes.bytes() == 0);
}

TEST_CASE("A large append that threads share is what one of them stores") {
  ContextSpec spec = test::SmallF32Spec(/*layers=*/1);
  spec.heads = spec.kv_heads = 4;
  spec.head_dim = spec.v_head_dim = 64;
  spec.patterns = {"quest(1024,64)"};  // pages have summaries
  const int64_t length = 2000;
  Rng rng(1);
  const LayerKv kv(spec, length, rng);
  ThreadPool pool(3);
  KvStore shared(1 << 30, HostMemory(), &pool);
  KvStore alone(1 << 30);
  for (KvStore* store : {&shared, &alone}) {
    REQUIRE(store->Open(7, spec, 1, 0).ok());
    for (const TokenRange tokens : {TokenRange{0, 777}, {777, length}, {500, length}}) {
      REQUIRE(store->Append(7, 0, tokens, Pack(spec, 1, 0, kv, tokens)).ok());
    }
    CHECK(store->Verify(7, 0, {0, 4}, BlockSet::Range(0, 1000)).ok());
  }
  const Buffer whole = Pack(spec, 1, 0, kv, {0, length});
  Buffer read(whole.size());
  REQUIRE(shared.Read(7, 0, {0, length}, read.data()).ok());
  CHECK(std::equal(read.data(), read.data() + read.size(), whole.data()));
  const Pattern pattern = *Pattern::Parse(spec.patterns[0], 4);
  const PageSummary form(*pattern.selectors()[0], spec.head_dim);
  const SelectKeys by_threads = *shared.KeysToSelect(7, 0, length, form);
  const SelectKeys by_one = *alone.KeysToSelect(7, 0, length, form);
  for (int head = 0; head < 4; ++head) {
    for (int64_t block = 0; block < length / kBlockTokens; ++block) {
      const float* summary = by_threads.known(head, block);
      REQUIRE(std::equal(summary, summary + form.page_floats(), by_one.known(head, block)));
    }
  }
}

TEST_CASE("Every token's rows lie with every rank that the layout gives them to") {
  const uint64_t seed = GENERATE(range(uint64_t{1}, uint64_t{21}));
  CAPTURE(seed);
  Rng rng(seed);
  ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
  spec.placement = static_cast<Placement>(rng.Below(3));
  spec.v_is_k_prefix = rng.Below(2) == 0;
  const int64_t length = rng.Between(1, 700);
  if (rng.Below(2) == 0) {
    spec.partition = {PartitionKind::kZigzag, 1};
    spec.tokens_expected = length;
  }
  const int world = static_cast<int>(rng.Between(1, 5));
  const LayerKv kv(spec, length, rng);
  int64_t found = 0;
  for (int rank = 0; rank < world; ++rank) {
    KvStore store(1 << 30);
    REQUIRE(store.Open(7, spec, world, rank).ok());
    Rng chunks(seed);
    for (int64_t start = 0; start < length;) {
      const int64_t end = std::min(length, start + chunks.Between(1, 150));
      REQUIRE(store.Append(7, 1, {start, end}, Pack(spec, world, rank, kv, {start, end})).ok());
      start = end;
    }
    const KvTable* table = store.Table(7, 1, length).value();
    const Layout layout = LayoutOf(spec, world, length);
    const HeadRanges& heads = layout.KvHeads(rank);
    for (int64_t token = 0; token < length; ++token) {
      ForEachHead(heads, [&](int head) {
        const KvPage& page = table->page(head, token / kBlockTokens);
        const bool mine = layout.Blocks(rank).Contains(token / kBlockTokens);
        REQUIRE((page.k != nullptr) == mine);
        if (!mine) return;
        ++found;
        const int64_t row = token % kBlockTokens;
        REQUIRE(RowIs(page.k + row * page.k_row_stride * 4, kv.k, token, head));
        REQUIRE(RowIs(page.v + row * page.v_row_stride * 4, kv.V(spec), token, head));
      });
    }
    CHECK(store.Verify(7, 1, {0, spec.kv_heads}, BlockSet::Range(0, 1000)).ok());
    CHECK(store.kv_bytes() == store.HeldBy(7).context_bytes);
    CHECK(store.Release(7).ok());
    CHECK(store.kv_bytes() == 0);
  }
  CHECK(found >= length * spec.kv_heads);
}

TEST_CASE("An append beyond the quota names the figures and leaves no trace") {
  const ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
  Rng rng(1);
  const LayerKv kv(spec, 256, rng);
  const int64_t page = PageBytes(spec);
  KvStore store(5 * page);
  REQUIRE(store.Open(1, spec, 1, 0).ok());
  REQUIRE(store.Append(1, 0, {0, 100}, Pack(spec, 1, 0, kv, {0, 100})).ok());
  CHECK(store.kv_bytes() == 4 * page);
  const absl::Status refused = store.Append(1, 0, {100, 256}, Pack(spec, 1, 0, kv, {100, 256}));
  CHECK(absl::IsResourceExhausted(refused));
  CHECK(std::string(refused.message()).find("kv_bytes_limit: 30720; 24576 in use") !=
        std::string::npos);
  CHECK(store.kv_bytes() == 4 * page);
  CHECK(store.Table(1, 0, 100).ok());
  CHECK(absl::IsFailedPrecondition(store.Table(1, 0, 101).status()));
  // What fits the started block needs no page.
  CHECK(store.Append(1, 0, {100, 128}, Pack(spec, 1, 0, kv, {100, 128})).ok());
  CHECK(store.kv_bytes() == 4 * page);
}

TEST_CASE("A bit that flips in a sealed page is found and named") {
  const ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
  Rng rng(2);
  const LayerKv kv(spec, 200, rng);
  KvStore store(1 << 30);
  REQUIRE(store.Open(3, spec, 1, 0).ok());
  REQUIRE(store.Append(3, 1, {0, 200}, Pack(spec, 1, 0, kv, {0, 200})).ok());
  const BlockSet all = BlockSet::Range(0, 4);
  REQUIRE(store.Verify(3, 1, {0, 2}, all).ok());
  const uint64_t trials = test::NumberFromEnvironment("ANNULUS_BIT_FLIPS", 100);
  uint64_t found = 0;
  for (uint64_t trial = 0; trial < trials; ++trial) {
    const int head = static_cast<int>(rng.Below(2));
    const auto block = static_cast<int64_t>(rng.Below(3));
    auto* page = const_cast<std::byte*>(store.Table(3, 1, 200).value()->page(head, block).k);
    const uint64_t bit = rng.Below(static_cast<uint64_t>(PageBytes(spec)) * 8);
    page[bit / 8] ^= std::byte{1} << (bit % 8);
    const absl::Status lost = store.Verify(3, 1, {0, 2}, all);
    CHECK(absl::IsDataLoss(lost));
    found += absl::IsDataLoss(lost);
    CHECK(std::string(lost.message())
              .find("context 3 layer 1 kv head " + std::to_string(head) + " block " +
                    std::to_string(block)) != std::string::npos);
    // Who does not touch the page does not hear of it.
    CHECK(store.Verify(3, 1, {1 - head, 1}, all).ok());
    page[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  CHECK(store.Verify(3, 1, {0, 2}, all).ok());
  test::Tell({13, "a bit flips in a stored block", absl::StrCat(trials, " flips"),
              "100% detected by its CRC32C, DATA_LOSS", absl::StrCat(found, " of ", trials),
              found == trials});
}

TEST_CASE("TruncateLayer forgets, frees and lets the tokens be written anew") {
  const ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
  Rng rng(3);
  const LayerKv first(spec, 300, rng);
  const LayerKv second(spec, 300, rng);
  KvStore store(1 << 30);
  REQUIRE(store.Open(1, spec, 1, 0).ok());
  REQUIRE(store.Append(1, 0, {0, 300}, Pack(spec, 1, 0, first, {0, 300})).ok());
  REQUIRE(store.TruncateLayer(1, 0, 70).ok());
  CHECK(store.kv_bytes() == 2 * 2 * PageBytes(spec));
  CHECK(absl::IsFailedPrecondition(store.Table(1, 0, 71).status()));
  CHECK(
      absl::IsFailedPrecondition(store.Append(1, 0, {71, 80}, Pack(spec, 1, 0, second, {71, 80}))));
  REQUIRE(store.Append(1, 0, {70, 300}, Pack(spec, 1, 0, second, {70, 300})).ok());
  const KvTable* table = store.Table(1, 0, 300).value();
  for (int64_t token = 0; token < 300; ++token) {
    const KvPage& page = table->page(1, token / kBlockTokens);
    CHECK(RowIs(page.k + (token % kBlockTokens) * page.k_row_stride * 4,
                token < 70 ? first.k : second.k, token, 1));
  }
  CHECK(store.Verify(1, 0, {0, 2}, BlockSet::Range(0, 5)).ok());
}

TEST_CASE("A context goes back to what it was, by layer") {
  const ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
  Rng rng(3);
  const LayerKv kv(spec, 300, rng);
  KvStore store(1 << 30);
  REQUIRE(store.Open(1, spec, 1, 0).ok());
  REQUIRE(store.Append(1, 0, {0, 300}, Pack(spec, 1, 0, kv, {0, 300})).ok());
  const std::vector<LayerState> before = {{250, 192, {7, {5, 6}}, {100, 250}}, {}};
  CHECK(absl::IsNotFound(store.RollBack(2, before)));
  CHECK(absl::IsFailedPrecondition(store.RollBack(1, {before[0]})));
  CHECK(absl::IsFailedPrecondition(store.RollBack(1, {{300}, {1}})));
  CHECK(store.Layers(1)[0].tokens == 300);
  REQUIRE(store.RollBack(1, before).ok());
  CHECK(store.Layers(1) == before);
  CHECK(store.kv_bytes() == 2 * 4 * PageBytes(spec));
}

TEST_CASE("The store refuses what it cannot know") {
  const ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
  KvStore store(1 << 20);
  REQUIRE(store.Open(1, spec, 1, 0).ok());
  CHECK(absl::IsAlreadyExists(store.Open(1, spec, 1, 0)));
  CHECK(absl::IsNotFound(store.Append(2, 0, {0, 1}, Buffer())));
  CHECK(absl::IsNotFound(store.Release(2)));
  CHECK(absl::IsInvalidArgument(store.Append(1, 2, {0, 1}, Buffer())));
  CHECK(absl::IsInvalidArgument(store.Append(1, 0, {5, 5}, Buffer())));
  CHECK(absl::IsDataLoss(store.Append(1, 0, {0, 1}, Buffer(3))));
}

TEST_CASE("Layers without tokens take no memory, and others are counted and bounded") {
  ContextSpec spec;
  spec.layers = 1024;
  spec.heads = spec.kv_heads = 2;
  spec.head_dim = spec.v_head_dim = 8;
  constexpr int64_t kLimit = int64_t{256} << 20;
  KvStore store(kLimit);
  const auto in_use = [] { return static_cast<int64_t>(mallinfo2().uordblks); };
  const int64_t before = in_use();
  for (ContextId id = 1; id <= 500; ++id) REQUIRE(store.Open(id, spec, 1, 0).ok());
  const int64_t empty = in_use() - before;
  CHECK(empty < int64_t{8} << 20);
  CHECK(store.kv_bytes() == 0);
  CHECK(store.table_bytes() > empty / 2);

  // One page for each head of each layer, until the bound of what is no page is met.
  Rng rng(5);
  const LayerKv kv(spec, 1, rng);
  const Buffer rows = Pack(spec, 1, 0, kv, {0, 1});
  absl::Status status;
  int64_t layers = 0;
  for (ContextId id = 1; id <= 500 && status.ok(); ++id) {
    for (int layer = 0; layer < spec.layers && status.ok(); ++layer) {
      status = store.Append(id, layer, {0, 1}, rows.span());
      layers += status.ok();
    }
  }
  CHECK(absl::IsResourceExhausted(status));
  CHECK(absl::StrContains(status.message(), "table_bytes_max: 33554432"));
  CHECK(store.table_bytes() <= kLimit / 8);
  CHECK(layers > 5000);
  for (ContextId id = 1; id <= 500; ++id) REQUIRE(store.Release(id).ok());
  CHECK(store.table_bytes() == 0);
}

TEST_CASE("One owner's contexts and forks take at most half of what is beside pages") {
  ContextSpec spec;
  spec.layers = 1024;
  spec.heads = spec.kv_heads = 2;
  spec.head_dim = spec.v_head_dim = 8;
  spec.owner = "cats";
  KvStore store(int64_t{64} << 20);  // an eighth of which is 8 MiB
  constexpr int64_t kHalf = int64_t{4} << 20;
  Rng rng(5);
  const LayerKv kv(spec, 1, rng);
  const Buffer rows = Pack(spec, 1, 0, kv, {0, 1});
  REQUIRE(store.Open(1, spec, 1, 0).ok());
  for (int layer = 0; layer < 512; ++layer) {
    REQUIRE(store.Append(1, layer, {0, 1}, rows.span()).ok());
  }
  std::vector<int64_t> stored(1024, 0);
  std::fill_n(stored.begin(), 512, 1);
  const int64_t of_one = store.table_bytes();
  ContextId id = 2;
  absl::Status status;
  while (status.ok()) status = store.Fork(1, id++, stored);
  CHECK(status.message() ==
        absl::StrCat("table_bytes_max: 8388608 (an eighth of kv_bytes_limit); its owner has ",
                     store.table_bytes(), ", and at most half is one's, this call needs ", of_one,
                     " more; release contexts"));
  CHECK(store.table_bytes() <= kHalf);
  CHECK(store.table_bytes() > kHalf - of_one);

  const int64_t of_cats = store.table_bytes();
  spec.owner = "dogs";
  REQUIRE(store.Open(1000, spec, 1, 0).ok());
  for (int layer = 0; layer < 512; ++layer) {
    CHECK(store.Append(1000, layer, {0, 1}, rows.span()).ok());
  }
  spec.owner = "";  // nobody's may take all that is left
  ContextId nobodys = 2000;
  status = absl::OkStatus();
  while (status.ok()) status = store.Open(nobodys++, spec, 1, 0);
  CHECK(absl::StrContains(status.message(), " in use, this call needs "));
  CHECK(store.table_bytes() > of_cats + kHalf / 2);
  CHECK(absl::IsResourceExhausted(store.Fork(1, id, stored)));
  REQUIRE(store.Release(2).ok());
  CHECK(store.Fork(1, id, stored).ok());
}

}  // namespace
}  // namespace annulus
