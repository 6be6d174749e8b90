// A store whose pages lie in a GPU's memory does what one in host memory does, whatever happens to
// it, and nothing reads or writes its pages past the memory space.
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/rng.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"
#include "runtime/store/kv_store.h"
#include "tests/catch.h"
#include "tests/fake_device.h"
#include "tests/runtime/inputs.h"

namespace annulus {
namespace {

using test::FakeDevice;
using test::LayerKv;

constexpr int kWorld = 2;
constexpr int64_t kTokensMax = 700;

ContextSpec SpecOf(uint64_t seed) {
  ContextSpec spec;
  spec.heads = 4;
  spec.kv_heads = 2;
  spec.head_dim = 16;
  spec.v_head_dim = 8;
  spec.v_is_k_prefix = seed % 3 == 2;
  spec.dtype = DType::kBF16;
  spec.partition = {PartitionKind::kBlockCyclic, 1};
  return spec;
}

// Two stores that are told the same.
struct Twins {
  FakeDevice device;
  KvStore on_host{int64_t{1} << 22};
  KvStore on_device{int64_t{1} << 22, device};

  template <typename Call>
  absl::Status Both(Call call) {
    const absl::Status host = call(on_host);
    const absl::Status device_said = call(on_device);
    INFO(host.ToString() << " on the host, " << device_said.ToString() << " on the device");
    REQUIRE(host == device_said);
    return host;
  }

  void Compare(ContextId id, const ContextSpec& spec) {
    const int64_t tokens = on_host.Layers(id)[0].tokens;
    REQUIRE(on_device.Layers(id)[0].tokens == tokens);
    REQUIRE(on_device.kv_bytes() == on_host.kv_bytes());
    if (tokens == 0) return;
    const Layout layout = LayoutOf(spec, (*on_host.Find(id))->world, tokens);
    std::vector<std::byte> bytes[2];
    for (std::vector<std::byte>& some : bytes) {
      some.resize(static_cast<size_t>(AppendBytes(spec, layout, 0, {0, tokens})), std::byte{7});
    }
    REQUIRE(on_host.Read(id, 0, {0, tokens}, bytes[0].data()).ok());
    REQUIRE(on_device.Read(id, 0, {0, tokens}, bytes[1].data()).ok());
    REQUIRE(bytes[0] == bytes[1]);
  }
};

TEST_CASE("A store on a device holds what one on the host does") {
  const uint64_t seed = GENERATE(1, 2, 3, 4, 5, 6);
  CAPTURE(seed);
  Rng rng(seed);
  const ContextSpec spec = SpecOf(seed);
  const LayerKv kv(spec, kTokensMax, rng);
  Twins twins;
  REQUIRE(twins.Both([&](KvStore& store) { return store.Open(1, spec, kWorld, 0); }).ok());
  ContextId last = 1;
  for (int step = 0; step < 60; ++step) {
    const auto id = static_cast<ContextId>(1 + rng.Below(last));
    const bool open = twins.on_host.Find(id).ok();
    const int64_t tokens = open ? twins.on_host.Layers(id)[0].tokens : 0;
    switch (rng.Below(8)) {
      case 0:
        if (last < 5 && open) {
          ++last;
          (void)twins.Both([&](KvStore& store) { return store.Fork(id, last, {tokens}); });
        }
        break;
      case 1:
        (void)twins.Both([&](KvStore& store) { return store.TruncateLayer(id, 0, tokens / 2); });
        break;
      case 2:
        if (step > 40) (void)twins.Both([&](KvStore& store) { return store.Release(id); });
        break;
      default: {
        const int64_t begin = rng.Below(4) == 0 ? tokens / 2 : tokens;
        const TokenRange range{begin, std::min(kTokensMax, begin + rng.Between(1, 150))};
        if (range.size() < 1) break;
        const Buffer packed = PackAppend(spec, LayoutOf(spec, kWorld, range.end), 0, range,
                                         kv.k.view().Tokens(range.begin, range.size()),
                                         kv.V(spec).Tokens(range.begin, range.size()));
        (void)twins.Both([&](KvStore& store) { return store.Append(id, 0, range, packed.span()); });
      }
    }
    for (const ContextId held : twins.on_host.ContextIds()) twins.Compare(held, spec);
  }
}

// What a step of several contexts appends, `tokens` each, from where each of them ends.
class StepOf {
 public:
  StepOf(const KvStore& store, int contexts, int64_t tokens, const ContextSpec& spec,
         const LayerKv& kv) {
    for (ContextId id = 1; id <= static_cast<ContextId>(contexts); ++id) {
      const int64_t begin = store.Layers(id)[0].tokens;
      const TokenRange range{begin, begin + tokens};
      packed_.push_back(PackAppend(spec, LayoutOf(spec, 1, range.end), 0, range,
                                   kv.k.view().Tokens(begin, tokens),
                                   kv.V(spec).Tokens(begin, tokens)));
      appends_.push_back({.context = id, .tokens = range, .packed = packed_.back().span()});
    }
  }
  std::vector<KvStore::LayerAppend>& appends() { return appends_; }

 private:
  std::vector<Buffer> packed_;
  std::vector<KvStore::LayerAppend> appends_;
};

TEST_CASE("What many contexts append goes to a device in one copy") {
  const uint64_t seed = GENERATE(1, 2, 3);
  Rng rng(seed);
  const ContextSpec spec = SpecOf(seed);
  const LayerKv kv(spec, 200, rng);
  Twins twins;
  for (ContextId id = 1; id <= 6; ++id) {
    REQUIRE(twins.Both([&](KvStore& store) { return store.Open(id, spec, 1, 0); }).ok());
  }
  REQUIRE(twins.Both([&](KvStore& store) { return store.Fork(1, 7, {0}); }).ok());
  for (int step = 0; step < 40; ++step) {  // over the ends of blocks
    StepOf on_host(twins.on_host, 7, 5, spec, kv);
    const auto bad = static_cast<size_t>(rng.Below(7));
    on_host.appends()[bad].tokens.begin += 1;  // a gap
    const int copies = twins.device.copies_in();
    const auto said = twins.on_host.AppendAll(on_host.appends());
    REQUIRE(twins.on_device.AppendAll(on_host.appends()) == said);
    CHECK(twins.device.copies_in() == copies + 1);
    for (size_t i = 0; i < 7; ++i) REQUIRE(said[i].ok() == (i != bad));
    for (ContextId id = 1; id <= 7; ++id) twins.Compare(id, spec);
  }
}

TEST_CASE("A copy to a device that fails takes back all of its appends and no others") {
  Rng rng(5);
  const ContextSpec spec = SpecOf(1);
  const LayerKv kv(spec, 200, rng);
  Twins twins;
  for (ContextId id = 1; id <= 3; ++id) {
    REQUIRE(twins.Both([&](KvStore& store) { return store.Open(id, spec, 1, 0); }).ok());
  }
  StepOf before(twins.on_host, 3, 100, spec, kv);
  for (KvStore* store : {&twins.on_host, &twins.on_device}) {
    for (const absl::Status& status : store->AppendAll(before.appends())) REQUIRE(status.ok());
  }
  StepOf step(twins.on_host, 3, 60, spec, kv);
  step.appends()[1].tokens.begin += 1;
  const absl::Status error = absl::UnavailableError("the GPU is lost");
  twins.device.FailCopiesIn(error);
  const auto said = twins.on_device.AppendAll(step.appends());
  CHECK(said[0] == error);
  CHECK(absl::IsFailedPrecondition(said[1]));
  CHECK(said[2] == error);
  twins.device.FailCopiesIn(absl::OkStatus());
  for (ContextId id = 1; id <= 3; ++id) twins.Compare(id, spec);
  step.appends()[1].tokens.begin -= 1;
  for (KvStore* store : {&twins.on_host, &twins.on_device}) {
    for (const absl::Status& status : store->AppendAll(step.appends())) REQUIRE(status.ok());
  }
  for (ContextId id = 1; id <= 3; ++id) twins.Compare(id, spec);
}

TEST_CASE("A bit that flips in a device's memory is found") {
  Rng rng(7);
  const ContextSpec spec = SpecOf(1);
  const LayerKv kv(spec, 200, rng);
  FakeDevice device;
  KvStore store(int64_t{1} << 22, device);
  REQUIRE(store.Open(1, spec, 1, 0).ok());
  const Buffer packed = PackAppend(spec, LayoutOf(spec, 1, 200), 0, {0, 200}, kv.k, kv.v);
  REQUIRE(store.Append(1, 0, {0, 200}, packed.span()).ok());
  const BlockSet all = BlockSet::Range(0, 4);
  REQUIRE(store.Verify(1, 0, {0, 2}, all).ok());
  const KvPage page = (*store.Table(1, 0, 200))->page(1, 2);
  auto* byte = const_cast<std::byte*>(FakeDevice::Host(page.v)) + 5;
  *byte ^= std::byte{4};
  const absl::Status status = store.Verify(1, 0, {0, 2}, all);
  CHECK(absl::IsDataLoss(status));
  CHECK(status.message().find("kv head 1 block 2") != absl::string_view::npos);
}

}  // namespace
}  // namespace annulus
