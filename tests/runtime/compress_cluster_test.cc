// Contexts compressed in the service, over whole clusters in threads: each KV head keeps the keys
// that the float64 reference keeps, and a context of these answers as attention over exactly them.
#include <cmath>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "attention/reference/columns.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/runtime/await_whole.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"

namespace annulus {
namespace {

using test::LayerKv;
using test::LocalCluster;
using test::RandomTensor;

constexpr int64_t kTokens = 600, kKeep = 130, kRows = 20;
const KeepRule kRule{.keep = kKeep, .recent = 20, .pool_width = 5};

struct Filled {
  Filled(Service& service, ContextSpec of, Rng& rng) : spec(std::move(of)) {
    id = service.Call(spec, CallContext()).value().id;
    for (int layer = 0; layer < spec.layers; ++layer) {
      kv.push_back(LayerKv(spec, kTokens + 16, rng));
      q.push_back(RandomTensor(kRows, spec.heads, spec.head_dim, rng));
      CHECK(service.Call(kv.back().Append(id, layer, 0, kTokens), CallContext()).ok());
    }
  }

  CompressRequest Ask(ContextId into, int layer) const {
    CompressRequest request;
    request.context = id;
    request.layer = layer;
    request.q_start = kTokens - kRows;
    request.kv_len = kTokens;
    request.q = q[static_cast<size_t>(layer)];
    request.rule = kRule;
    request.into = into;
    request.key = {7, static_cast<uint64_t>(100 + layer)};
    return request;
  }

  std::vector<int32_t> Expected(int layer, int head) const {
    const auto at = static_cast<size_t>(layer);
    const float scale = 1.0f / std::sqrt(static_cast<float>(spec.head_dim));
    return ReferenceSnapKv(ReferenceVotes(q[at], kTokens - kRows, kv[at].k, head, kTokens, scale),
                           kRule.keep, kRule.recent, kRule.pool_width);
  }

  // The rows that are kept, and behind them the layer's next ones.
  LayerKv Smaller(int layer, int64_t more) const {
    const LayerKv& from = kv[static_cast<size_t>(layer)];
    LayerKv smaller;
    const auto gather = [&](const Tensor& rows) {
      Tensor made(DType::kF32, kKeep + more, rows.heads(), rows.dim());
      for (int head = 0; head < spec.kv_heads; ++head) {
        std::vector<int32_t> at = Expected(layer, head);
        for (int64_t i = 0; i < more; ++i) at.push_back(static_cast<int32_t>(kTokens + i));
        for (size_t i = 0; i < at.size(); ++i) {
          std::copy_n(rows.f32() + (at[i] * rows.heads() + head) * rows.dim(), rows.dim(),
                      made.f32() + (static_cast<int64_t>(i) * rows.heads() + head) * rows.dim());
        }
      }
      return made;
    };
    smaller.k = gather(from.k);
    if (!spec.v_is_k_prefix) smaller.v = gather(from.v);
    return smaller;
  }

  ContextSpec spec;
  std::vector<LayerKv> kv;
  std::vector<Tensor> q;
  ContextId id = 0;
};

absl::StatusOr<CompressResult> Patiently(Service& service, const CompressRequest& request) {
  absl::StatusOr<CompressResult> result;
  for (int i = 0; i < 200; ++i) {  // a context that goes on elsewhere is away for a moment
    result = service.Call(request, CallContext());
    if (!absl::IsUnavailable(result.status())) break;
    absl::SleepFor(absl::Milliseconds(50));
  }
  INFO(result.status());
  REQUIRE(result.ok());
  return result;
}

// Compresses both layers into a new context, whose rows are the reference's.
ContextId Compressed(Service& service, const Filled& context, const ContextSpec& spec) {
  const ContextId into = service.Call(spec, CallContext()).value().id;
  for (int layer = 0; layer < spec.layers; ++layer) {
    const auto result = Patiently(service, context.Ask(into, layer));
    CHECK(result->tokens == kKeep);
    const KeyListData& kept = *result->kept.data;
    CHECK(result->kept.name == "kept");
    REQUIRE(kept.heads == spec.kv_heads);
    for (int head = 0; head < spec.kv_heads; ++head) {
      CHECK(std::vector<int32_t>(kept.keys.begin() + kept.begin[head],
                                 kept.keys.begin() + kept.begin[head + 1]) ==
            context.Expected(layer, head));
    }
    // What is said of the whole context by the list.
    Rng rng(5);
    const Tensor q = RandomTensor(1, spec.heads, spec.head_dim, rng);
    AttendRequest whole{.context = context.id, .layer = layer, .q_start = kTokens};
    whole.kv_len = kTokens;
    whole.q = q;
    whole.pattern = "list(kept)";
    whole.lists = {result->kept};
    const auto answer = service.Call(whole, CallContext());
    INFO(answer.status());
    REQUIRE(answer.ok());
    const Partial oracle = test::Oracle(context.spec, context.Smaller(layer, 0), q, kKeep, "full");
    CHECK(test::WorstError(answer->out, answer->lse, oracle) < 1e-6);
  }
  return into;
}

// Steps over the smaller context from row `at` on.
void CheckSteps(Service& service, const Filled& context, ContextId id, int64_t at, int count,
                Rng& rng) {
  for (int layer = 0; layer < context.spec.layers; ++layer) {
    const LayerKv smaller = context.Smaller(layer, at - kKeep + count);
    for (int64_t i = at; i < at + count; ++i) {
      const Tensor q = RandomTensor(1, context.spec.heads, context.spec.head_dim, rng);
      StepRequest step = smaller.Step(id, layer, i, q);
      StepResults results;
      for (int patience = 0; patience < 200; ++patience) {
        results = test::Step(service, {&step, 1});
        if (!absl::IsUnavailable(results[0].status())) break;
        absl::SleepFor(absl::Milliseconds(50));
      }
      INFO(results[0].status());
      REQUIRE(results[0].ok());
      const Partial oracle = test::Oracle(context.spec, smaller, q, i + 1, "causal");
      CHECK(test::WorstError(results[0]->out, results[0]->lse, oracle) < 1e-6);
    }
  }
}

TEST_CASE("a compressed context answers as attention over exactly the keys that are kept") {
  const int world = GENERATE(1, 2, 3, 4, 7);
  LocalCluster cluster({.workers = world, .fake_device = world == 3});
  Service& service = cluster.service();
  Rng rng(static_cast<uint64_t>(world) + 400);
  for (const Placement placement : {Placement::kTokens, Placement::kHeads, Placement::kMesh}) {
    ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
    spec.placement = placement;
    spec.v_is_k_prefix = placement == Placement::kMesh;
    CAPTURE(world, static_cast<int>(placement));
    const Filled context(service, spec, rng);
    // The smaller one may lie otherwise.
    spec.placement = Placement::kTokens;
    const ContextId smaller = Compressed(service, context, spec);
    CheckSteps(service, context, smaller, kKeep, 3, rng);
  }
}

TEST_CASE("a compressed context is forked, truncated, kept by copies and moved as any other") {
  LocalCluster cluster({.workers = 5});
  Service& service = cluster.service();
  Rng rng(420);
  ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
  spec.replicas = 2;
  const Filled context(service, spec, rng);
  const auto whole_fork = service.Call(ForkRequest{context.id, {}}, CallContext());
  REQUIRE(whole_fork.ok());
  const ContextId smaller = Compressed(service, context, spec);
  // A fork of the whole context votes alike, and goes when it is not needed any more.
  CompressRequest of_fork = context.Ask(service.Call(spec, CallContext()).value().id, 0);
  of_fork.context = whole_fork->id;
  CHECK(Patiently(service, of_fork)->tokens == kKeep);
  CHECK(service.Call(ReleaseRequest{whole_fork->id}, CallContext()).ok());
  CheckSteps(service, context, of_fork.into, kKeep, 0, rng);
  const auto fork = service.Call(ForkRequest{smaller, {}}, CallContext());
  REQUIRE(fork.ok());
  CheckSteps(service, context, smaller, kKeep, 3, rng);
  CheckSteps(service, context, fork->id, kKeep, 1, rng);
  REQUIRE(service.Call(TruncateRequest{smaller, kKeep + 1}, CallContext()).ok());
  CheckSteps(service, context, smaller, kKeep + 1, 2, rng);
  cluster.Kill(1);
  CheckSteps(service, context, smaller, kKeep + 3, 1, rng);
  test::AwaitWhole(service, smaller);
  CheckSteps(service, context, smaller, kKeep + 4, 1, rng);
  // And the whole one, of which a copy was lost, still votes as it did.
  Compressed(service, context, spec);
}

TEST_CASE("a compression that is repeated appends nothing twice") {
  LocalCluster cluster({.workers = 2});
  Service& service = cluster.service();
  Rng rng(430);
  const Filled context(service, test::SmallF32Spec(), rng);
  CompressRequest request = context.Ask(service.Call(context.spec, CallContext()).value().id, 0);
  REQUIRE(service.Call(request, CallContext()).ok());
  const auto again = service.Call(request, CallContext());
  INFO(again.status());
  REQUIRE(again.ok());
  CHECK(again->tokens == kKeep);
  // Others go behind what is there.
  request.key = {7, 900};
  CHECK(absl::StrContains(service.Call(request, CallContext()).status().message(),
                          "start: 0; expected 130"));
  request.start = kKeep;
  CHECK(service.Call(request, CallContext())->tokens == 2 * kKeep);
  // A context that has no more keys keeps them all.
  request.key = {7, 901};
  request.start = 2 * kKeep;
  request.rule.keep = 10'000;
  CHECK(service.Call(request, CallContext())->tokens == 2 * kKeep + kTokens);
}

TEST_CASE("a compression that makes no sense is refused by name") {
  LocalCluster cluster({.workers = 2});
  Service& service = cluster.service();
  Rng rng(440);
  const Filled context(service, test::SmallF32Spec(), rng);
  const ContextId into = service.Call(context.spec, CallContext()).value().id;
  const auto refused = [&](const CompressRequest& request, absl::string_view why) {
    const absl::Status status = service.Call(request, CallContext()).status();
    INFO(status);
    CHECK(absl::IsInvalidArgument(status));
    CHECK(absl::StrContains(status.message(), why));
  };
  refused(context.Ask(context.id, 0), "into: the context itself");
  CompressRequest request = context.Ask(into, 0);
  request.kv_len = kTokens + 1;
  refused(request, "kv_len: 601; expected 1 to 600");
  request = context.Ask(into, 0);
  request.layer = 1;
  refused(request, "layer");
  request = context.Ask(into, 0);
  const Tensor narrow = RandomTensor(kRows, 4, 8, rng);
  request.q = narrow;
  refused(request, "q");
  request = context.Ask(into, 0);
  request.scale = INFINITY;
  refused(request, "scale");
  // Scores that f32 does not hold.
  Tensor huge = RandomTensor(kRows, 4, 16, rng);
  for (int64_t i = 0; i < 16; ++i) huge.f32()[i] = 3e38f;
  request.scale = 0;
  request.q = huge;
  refused(request, "q, k: row 0, head 0 has a score that is not finite");
  ContextSpec other = context.spec;
  other.head_dim = 24;
  refused(context.Ask(service.Call(other, CallContext()).value().id, 0),
          "into: other KV heads, dims or dtype");
  ContextSpec efficient = context.spec;
  efficient.kv_efficient = true;
  efficient.patterns = {"s2(64,1,4)"};
  const Filled sparse(service, efficient, rng);
  refused(sparse.Ask(into, 0), "context: kv_efficient");
  CHECK(!service.Call(context.Ask(/*into=*/1, 0), CallContext()).ok());
}

}  // namespace
}  // namespace annulus
