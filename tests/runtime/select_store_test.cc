// Summaries of pages in the store: made when a page is sealed, for the words of the layer's own
// pattern, shared by forks and counted.
#include "attention/selector.h"
#include "base/rng.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"
#include "runtime/store/kv_store.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"

namespace annulus {
namespace {

using test::LayerKv;

class Stored {
 public:
  explicit Stored(std::vector<std::string> patterns) : store_(int64_t{1} << 30) {
    spec_ = test::SmallF32Spec(2);
    spec_.patterns = std::move(patterns);
    Rng rng(93);
    kv_ = LayerKv(spec_, 1000, rng);
    REQUIRE(store_.Open(1, spec_, 1, 0).ok());
  }

  void Append(ContextId id, int layer, TokenRange tokens) {
    const Buffer packed = PackAppend(spec_, LayoutOf(spec_, 1, tokens.end), 0, tokens,
                                     kv_.k.view().Tokens(tokens.begin, tokens.size()),
                                     kv_.v.view().Tokens(tokens.begin, tokens.size()));
    REQUIRE(store_.Append(id, layer, tokens, packed.span()).ok());
  }

  SelectKeys Keys(ContextId id, int layer, int64_t tokens, const PageSummary& form) {
    auto keys = store_.KeysToSelect(id, layer, tokens, form);
    REQUIRE(keys.ok());
    return *std::move(keys);
  }

  // What is kept of a page is what its rows say.
  void CheckPage(const SelectKeys& keys, const PageSummary& form, int head, int64_t block) {
    const float* kept = keys.known(head, block);
    REQUIRE(kept != nullptr);
    std::vector<float> made(form.page_floats());
    SummarisePage(form, kv_.k.view().Row(block * kBlockTokens, head), DType::kF32,
                  kv_.k.view().token_stride, kBlockTokens, made.data());
    CHECK(std::equal(made.begin(), made.end(), kept));
  }

  KvStore store_;
  ContextSpec spec_;
  LayerKv kv_;
};

TEST_CASE("store: sealed pages keep the summaries of their layer's words, and forks share them") {
  Stored stored({"quest(64) | moba(128,3) | quest(256,64)", "causal"});
  const Pattern pattern = *Pattern::Parse(stored.spec_.patterns[0], 2);
  stored.Append(1, 0, {0, 100});
  stored.Append(1, 0, {100, 300});
  stored.Append(1, 1, {0, 300});
  const int64_t page = PageBytes(stored.spec_);
  int64_t floats = 0;
  for (const auto& selector : pattern.selectors()) {
    const PageSummary form(*selector, stored.spec_.head_dim);
    floats += static_cast<int64_t>(form.page_floats());
    const SelectKeys keys = stored.Keys(1, 0, 300, form);
    REQUIRE(keys.known);
    for (int head = 0; head < 2; ++head) {
      for (int64_t block = 0; block < 4; ++block) stored.CheckPage(keys, form, head, block);
      CHECK(keys.known(head, 4) == nullptr);  // it is open
    }
    CHECK_FALSE(stored.Keys(1, 1, 300, form).known);
  }
  // Layer 0 has summaries beside its pages, layer 1 none.
  CHECK(stored.store_.kv_bytes() == 2 * 5 * (2 * page + floats * 4));
  CHECK(stored.store_.HeldBy(1).context_bytes == stored.store_.kv_bytes());

  REQUIRE(stored.store_.Fork(1, 2, {200, 0}).ok());
  const PageSummary form(*pattern.selectors()[1], stored.spec_.head_dim);
  const SelectKeys parent = stored.Keys(1, 0, 300, form), fork = stored.Keys(2, 0, 200, form);
  CHECK(fork.known(0, 1) == parent.known(0, 1));
  // The fork writes to its last page: that one is open until it is full again.
  stored.Append(2, 0, {200, 230});
  CHECK(stored.Keys(2, 0, 230, form).known(0, 3) == nullptr);
  CHECK(parent.known(0, 3) != nullptr);
  stored.Append(2, 0, {230, 256});
  stored.CheckPage(stored.Keys(2, 0, 256, form), form, 0, 3);
  REQUIRE(stored.store_.Release(1).ok());
  REQUIRE(stored.store_.Release(2).ok());
  CHECK(stored.store_.kv_bytes() == 0);
}

}  // namespace
}  // namespace annulus
