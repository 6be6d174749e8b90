// The store under forks and under KV-efficient contexts: which bytes exist, which are shared, and
// when they go.
#include <chrono>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/rng.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"
#include "runtime/context/retention.h"
#include "runtime/store/kv_store.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"

namespace annulus {
namespace {

using test::LayerKv;

Buffer Pack(const ContextSpec& spec, const LayerKv& kv, TokenRange tokens) {
  return PackAppend(spec, LayoutOf(spec, 1, tokens.end), 0, tokens,
                    kv.k.view().Tokens(tokens.begin, tokens.size()),
                    kv.V(spec).Tokens(tokens.begin, tokens.size()));
}

TEST_CASE("A fork takes no bytes until one of the two writes, and one block then") {
  const ContextSpec spec = test::SmallF32Spec();
  Rng rng(1);
  const LayerKv kv(spec, 400, rng);
  const int64_t page = PageBytes(spec);
  KvStore store(9 * page);
  REQUIRE(store.Open(1, spec, 1, 0).ok());
  REQUIRE(store.Append(1, 0, {0, 200}, Pack(spec, kv, {0, 200})).ok());  // 4 blocks of 2 heads
  REQUIRE(store.Fork(1, 2, {200}).ok());
  CHECK(store.kv_bytes() == 8 * page);
  CHECK(store.HeldBy(2).context_bytes == 8 * page);
  CHECK(store.Table(2, 0, 200).value()->page(1, 3).k ==
        store.Table(1, 0, 200).value()->page(1, 3).k);
  // The copy of the started block counts before it is made.
  CHECK(absl::IsResourceExhausted(store.Append(2, 0, {200, 201}, Pack(spec, kv, {200, 201}))));
  CHECK(store.Release(1).ok());
  CHECK(store.kv_bytes() == 8 * page);
  CHECK(store.Append(2, 0, {200, 201}, Pack(spec, kv, {200, 201})).ok());  // now it is its own
  CHECK(store.kv_bytes() == 8 * page);
  CHECK(absl::IsAlreadyExists(store.Fork(2, 2, {1})));
  CHECK(absl::IsNotFound(store.Fork(1, 3, {1})));
  CHECK(absl::IsFailedPrecondition(store.Fork(2, 3, {202})));
  CHECK(absl::IsFailedPrecondition(store.Fork(2, 3, {1, 1})));
}

std::string OwnersIn(const std::vector<OwnerBytes>& owners, int64_t page) {
  std::set<std::string> told;
  for (const auto& [owner, bytes] : owners) {
    told.insert(absl::StrCat(owner, ": ", bytes / page, " pages"));
  }
  return absl::StrJoin(told, ", ");
}

TEST_CASE("Many owners are told of in turn, and at once where that is news") {
  const ContextSpec base = test::SmallF32Spec();
  Rng rng(1);
  const LayerKv kv(base, 64, rng);
  KvStore store(int64_t{1} << 30);
  for (int i = 100; i < 200; ++i) {
    ContextSpec spec = base;
    spec.owner = absl::StrCat(i);
    REQUIRE(store.Open(static_cast<ContextId>(i), spec, 1, 0).ok());
  }
  REQUIRE(store.Append(199, 0, {0, 1}, Pack(base, kv, {0, 1})).ok());
  std::set<std::string> told;
  for (int i = 0; i < 7; ++i) {
    const std::vector<OwnerBytes> owners = store.TellOwners(1000);
    CHECK(owners.size() <= 17);
    if (i == 0) CHECK(owners.back() == OwnerBytes{"199", 2 * PageBytes(base)});
    for (const OwnerBytes& held : owners) told.insert(held.owner);
  }
  CHECK(told.size() == 100);
  CHECK(store.TellOwners(3).size() == 3);
}

TEST_CASE("What an owner's contexts hold counts together, and what forks share once") {
  ContextSpec spec = test::SmallF32Spec();
  Rng rng(1);
  const LayerKv kv(spec, 400, rng);
  const int64_t page = PageBytes(spec);
  KvStore store(100 * page);
  REQUIRE(store.Open(9, spec, 1, 0).ok());  // nobody's
  REQUIRE(store.Append(9, 0, {0, 200}, Pack(spec, kv, {0, 200})).ok());
  CHECK(store.HeldBy(9).owner_bytes == 0);
  spec.owner = "a";
  REQUIRE(store.Open(1, spec, 1, 0).ok());
  REQUIRE(store.Append(1, 0, {0, 200}, Pack(spec, kv, {0, 200})).ok());  // 4 blocks of 2 heads
  REQUIRE(store.Fork(1, 2, {200}).ok());
  CHECK(store.HeldBy(2).owner_bytes == 8 * page);
  REQUIRE(store.Append(2, 0, {200, 201}, Pack(spec, kv, {200, 201})).ok());  // a block of its own
  REQUIRE(store.Open(3, spec, 1, 0).ok());
  REQUIRE(store.Append(3, 0, {0, 1}, Pack(spec, kv, {0, 1})).ok());
  CHECK(store.HeldBy(1).owner_bytes == 12 * page);
  CHECK(store.kv_bytes() == 20 * page);
  CHECK(store.TellOwners(10) == std::vector<OwnerBytes>{{"a", 12 * page}});
  spec.owner = "b";
  REQUIRE(store.Open(4, spec, 1, 0).ok());
  REQUIRE(store.Append(4, 0, {0, 1}, Pack(spec, kv, {0, 1})).ok());
  CHECK(OwnersIn(store.TellOwners(10), page) == "a: 12 pages, b: 2 pages");

  std::shared_ptr<const ByteCount> count = store.OwnerCount(1);
  for (const ContextId id : {1, 2, 3}) REQUIRE(store.Release(id).ok());
  CHECK(count->bytes() == 0);
  CHECK(store.OwnerCount(1) == nullptr);
  // It is told for a while that nothing is left, should one telling be overtaken.
  for (int i = 0; i < 4; ++i) {
    CHECK(OwnersIn(store.TellOwners(10), page) == "a: 0 pages, b: 2 pages");
  }
  count = nullptr;
  for (int i = 0; i < 10; ++i) store.TellOwners(10);
  CHECK(OwnersIn(store.TellOwners(10), page) == "b: 2 pages");
  CHECK(store.HeldBy(4).owner_bytes == 2 * page);
  CHECK(store.kv_bytes() == 10 * page);
  // An append that fails takes nothing.
  KvStore small(page);
  REQUIRE(small.Open(1, spec, 1, 0).ok());
  CHECK(!small.Append(1, 0, {0, 200}, Pack(spec, kv, {0, 200})).ok());
  CHECK(small.HeldBy(1).owner_bytes == 0);
}

TEST_CASE("A family of forks keeps every one's tokens and no byte too many") {
  const uint64_t seed = GENERATE(range(uint64_t{1}, uint64_t{13}));
  CAPTURE(seed);
  Rng rng(seed);
  ContextSpec spec = test::SmallF32Spec();
  spec.v_is_k_prefix = seed % 3 == 0;
  const bool lean = seed % 2 == 0;
  if (lean) {
    spec.patterns = {"window(80) | sink(70)"};
    spec.kv_efficient = true;
  }
  const Retention retention = Retention::Of(spec).value();
  KvStore store(int64_t{1} << 30);
  struct One {
    std::vector<int> source;  // by token: which tensor its rows are of
    int64_t horizon = 0;
  };
  std::vector<LayerKv> values;
  for (int i = 0; i < 4; ++i) values.emplace_back(spec, 1000, rng);
  std::map<ContextId, One> contexts;
  REQUIRE(store.Open(1, spec, 1, 0).ok());
  contexts[1];
  ContextId last = 1;
  for (int action = 0; action < 120 && !contexts.empty(); ++action) {
    auto at = contexts.begin();
    std::advance(at, static_cast<long>(rng.Below(contexts.size())));
    const ContextId id = at->first;
    One& one = at->second;
    const auto tokens = static_cast<int64_t>(one.source.size());
    const auto cut = static_cast<int64_t>(rng.Below(static_cast<uint64_t>(tokens) + 1));
    switch (rng.Below(7)) {
      case 0:
        if (contexts.size() > 5 || !retention.CheckCut(0, one.horizon, cut).ok()) break;
        REQUIRE(store.Fork(id, ++last, {cut}).ok());
        contexts[last] = one;
        contexts[last].source.resize(static_cast<size_t>(cut));
        contexts[last].horizon = std::min(one.horizon, HorizonOf(cut));
        break;
      case 1:
        if (!retention.CheckCut(0, one.horizon, cut).ok()) break;
        REQUIRE(store.Truncate(id, cut).ok());
        one.source.resize(static_cast<size_t>(cut));
        one.horizon = std::min(one.horizon, HorizonOf(cut));
        break;
      case 2:
        if (contexts.size() < 3) break;
        REQUIRE(store.Release(id).ok());
        contexts.erase(at);
        break;
      default: {
        const int64_t n =
            rng.Between(1, std::max<int64_t>(1, std::min<int64_t>(150, 1000 - tokens)));
        if (tokens + n > 1000) break;
        const int source = static_cast<int>(rng.Below(4));
        const Buffer packed = Pack(spec, values[static_cast<size_t>(source)], {tokens, tokens + n});
        REQUIRE(store.Append(id, 0, {tokens, tokens + n}, packed).ok());
        one.source.resize(static_cast<size_t>(tokens + n), source);
        one.horizon = std::max(one.horizon, HorizonOf(tokens));
      }
    }
    std::set<const std::byte*> pages;
    for (const auto& [held, expected] : contexts) {
      const auto length = static_cast<int64_t>(expected.source.size());
      int64_t context_pages = 0;
      if (length == 0) continue;
      const KvTable* table = store.Table(held, 0, length).value();
      for (int head = 0; head < 2; ++head) {
        const BlockSet gone = retention.Gone(0, head, expected.horizon);
        for (int64_t block = 0; block < BlocksOf(length); ++block) {
          const KvPage& page = table->page(head, block);
          REQUIRE((page.k == nullptr) == gone.Contains(block));
          if (page.k == nullptr) continue;
          pages.insert(page.k);
          ++context_pages;
          for (int64_t t = block * 64; t < std::min(length, block * 64 + 64); ++t) {
            const LayerKv& kv =
                values[static_cast<size_t>(expected.source[static_cast<size_t>(t)])];
            REQUIRE(std::equal(page.k + (t % 64) * 64, page.k + (t % 64) * 64 + 64,
                               kv.k.view().Row(t, head)));
            REQUIRE(std::equal(page.v + (t % 64) * page.v_row_stride * 4,
                               page.v + (t % 64) * page.v_row_stride * 4 + 32,
                               kv.V(spec).Row(t, head)));
          }
        }
      }
      REQUIRE(store.HeldBy(held).context_bytes == context_pages * PageBytes(spec));
      REQUIRE(store.Verify(held, 0, {0, 2}, BlockSet::Range(0, 20)).ok());
    }
    REQUIRE(store.kv_bytes() == static_cast<int64_t>(pages.size()) * PageBytes(spec));
  }
  while (!contexts.empty()) {
    REQUIRE(store.Release(contexts.begin()->first).ok());
    contexts.erase(contexts.begin());
  }
  CHECK(store.kv_bytes() == 0);
}

TEST_CASE("What is gone at a horizon no later query may see, and never comes back") {
  const uint64_t seed = GENERATE(range(uint64_t{1}, uint64_t{31}));
  CAPTURE(seed);
  Rng rng(seed);
  const auto number = [&](int64_t low, int64_t high) {
    return std::to_string(rng.Between(low, high));
  };
  const auto primitive = [&]() -> std::string {
    switch (rng.Below(6)) {
      case 0:
        return "window(" + number(1, 300) + ")";
      case 1:
        return "sink(" + number(1, 200) + ")";
      case 2:
        return "s2(" + number(16, 100) + ", " + number(1, 4) + ", " + number(1, 5) + ", step=1)";
      case 3:
        return "power(64, " + number(1, 3) + ", 1)";
      case 4:
        return "docs(100, " + number(1, 300) + ", 50)";
      default:
        return "causal";
    }
  };
  ContextSpec spec = test::SmallF32Spec();
  spec.kv_efficient = true;
  spec.patterns = {primitive() + (rng.Below(2) ? " | " : " & ") + primitive()};
  CAPTURE(spec.patterns[0]);
  const Retention retention = Retention::Of(spec).value();
  const Pattern& pattern = retention.pattern(0);
  constexpr int64_t kLength = 1200;
  for (int head = 0; head < 2; ++head) {
    BlockSet before;
    for (int64_t horizon = 0; horizon <= kLength; horizon += 64) {
      const BlockSet gone = retention.Gone(0, head, horizon);
      CHECK(before.Subtract(gone).empty());
      before = gone;
      for (const int64_t block : gone.ToVector()) {
        CHECK(block < horizon / 64);
        for (int64_t q = horizon; q < kLength; q += 7) {
          for (int64_t k = block * 64; k < block * 64 + 64; ++k) {
            if (pattern.Allows(head, q, k)) FAIL("query " << q << " sees key " << k);
          }
        }
      }
      // CheckReads agrees with Allows for queries of any place.
      for (int trial = 0; trial < 4; ++trial) {
        const int64_t end = rng.Between(1, kLength);
        const TokenRange q{std::max<int64_t>(0, end - rng.Between(1, 3)), end};
        bool reads_gone = false;
        for (int h = 0; h < 2; ++h) {
          for (const int64_t block : retention.Gone(0, h, horizon).ToVector()) {
            for (int64_t p = q.begin; p < q.end; ++p) {
              for (int64_t k = block * 64; k < std::min(end, block * 64 + 64); ++k) {
                reads_gone = reads_gone || pattern.Allows(h, p, k);
              }
            }
          }
        }
        CHECK(retention.CheckReads(0, horizon, pattern, q, end).ok() == !reads_gone);
      }
    }
  }
}

// bf16 values of either sign from 0.5 to 2.
void FillRandom(Buffer& buffer, Rng& rng) {
  auto* words = reinterpret_cast<uint64_t*>(buffer.data());
  for (size_t i = 0; i < buffer.size() / 8; ++i) {
    words[i] = (rng.Next() & 0x80FF80FF80FF80FFu) | 0x3F003F003F003F00u;
  }
}

Partial AttendLast(KvStore& store, const ContextSpec& spec, int64_t tokens, const Tensor& q) {
  static Backend& cpu = *MakeBackend("cpu", 1).value().release();
  Partial answer(q.tokens(), spec.heads, spec.v_head_dim);
  const BlockSet keys = BlockSet::Range(0, BlocksOf(tokens));
  AttendArgs args;
  args.q = q;
  args.q_ranges = {{tokens - q.tokens(), tokens}};
  args.heads = {0, spec.heads};
  args.kv_tokens = tokens;
  args.kv = store.Table(1, 0, tokens).value();
  args.pattern = &store.PatternOfLayer(1, 0);
  args.keys = &keys;
  args.scale = 0.35f;
  args.into = answer.view();
  REQUIRE(cpu.Attend(args).ok());
  return answer;
}

TEST_CASE(
    "A million tokens: S2 keeps less than 8 percent and answers alike, a fork takes no time") {
  const uint64_t seed = 5;
  CAPTURE(seed);
  Rng rng(seed);
  ContextSpec spec;
  spec.heads = spec.kv_heads = 4;
  spec.head_dim = spec.v_head_dim = 8;
  spec.partition = {PartitionKind::kBlockCyclic, 64};
  spec.patterns = {"s2(64, 16, 16)"};
  constexpr int64_t kTokens = int64_t{1} << 20;
  constexpr int64_t kChunk = 16384;
  const int64_t all_bytes = DenseBytes(spec, HeadMapOf(spec, 1), {kTokens});
  KvStore dense(all_bytes);
  KvStore lean(all_bytes / 10);
  REQUIRE(dense.Open(1, spec, 1, 0).ok());
  spec.kv_efficient = true;
  REQUIRE(lean.Open(1, spec, 1, 0).ok());
  Buffer chunk(static_cast<size_t>(AppendBytes(spec, LayoutOf(spec, 1, kChunk), 0, {0, kChunk})));
  for (int64_t start = 0; start < kTokens; start += kChunk) {
    FillRandom(chunk, rng);
    REQUIRE(dense.Append(1, 0, {start, start + kChunk}, chunk).ok());
    REQUIRE(lean.Append(1, 0, {start, start + kChunk}, chunk).ok());
  }
  CHECK(dense.kv_bytes() == all_bytes);
  const double share = static_cast<double>(lean.kv_bytes()) / static_cast<double>(all_bytes);
  CHECK(share < 0.08);
  const Tensor q = test::RandomTensor(100, spec.heads, spec.head_dim, rng);
  const Partial expected = AttendLast(dense, spec, kTokens, q);
  const Partial answer = AttendLast(lean, spec, kTokens, q);
  CHECK(test::WorstError(answer.out(), answer.lse(), expected) < 1e-6);

  for (KvStore* store : {&dense, &lean}) {
    const int64_t bytes = store->kv_bytes();
    const auto begin = std::chrono::steady_clock::now();
    REQUIRE(store->Fork(1, 2, {kTokens}).ok());
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    CHECK(took.count() < 5);
    CHECK(store->kv_bytes() == bytes);
    WARN("fork of 1M tokens in " << took.count() << " ms");
  }
  WARN("S2 holds " << share * 100 << " % of dense bytes");
}

}  // namespace
}  // namespace annulus
