// Where contexts lie: short ones, which take few of the workers, take each as often.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"

namespace annulus {
namespace {

using test::LayerKv;
using test::LocalCluster;

// The fullest worker by the mean.
double Unfairness(LocalCluster& cluster, int workers) {
  int64_t most = 0;
  int64_t sum = 0;
  for (int i = 0; i < workers; ++i) {
    const int64_t bytes = cluster.worker(i).Snapshot().kv_bytes;
    most = std::max(most, bytes);
    sum += bytes;
  }
  return static_cast<double>(most) * workers / static_cast<double>(sum);
}

ContextSpec SpecOf(int layers, int heads, int kv_heads) {
  ContextSpec spec;
  spec.layers = layers;
  spec.heads = heads;
  spec.kv_heads = kv_heads;
  spec.head_dim = spec.v_head_dim = 8;
  return spec;
}

void Append(Coordinator& service, ContextId id, const LayerKv& kv, int layers, int64_t tokens) {
  for (int layer = 0; layer < layers; ++layer) {
    REQUIRE(service.Call(kv.Append(id, layer, 0, tokens), {}).ok());
  }
}

TEST_CASE("Short contexts lie on all workers alike, whatever their shape") {
  struct Case {
    int workers, layers, heads, kv_heads, replicas;
    Placement placement;
  };
  const Case c =
      GENERATE(Case{4, 1, 4, 2, 1, Placement::kTokens}, Case{3, 5, 8, 1, 1, Placement::kTokens},
               Case{5, 2, 6, 3, 1, Placement::kMesh}, Case{4, 2, 4, 4, 1, Placement::kHeads},
               Case{4, 2, 4, 2, 1, Placement::kMesh}, Case{4, 3, 4, 2, 2, Placement::kTokens},
               Case{7, 1, 4, 2, 1, Placement::kHeads}, Case{6, 1, 4, 2, 1, Placement::kHeads},
               Case{5, 1, 4, 1, 1, Placement::kHeads}, Case{5, 1, 2, 1, 2, Placement::kTokens},
               Case{2, 40, 2, 2, 1, Placement::kTokens});
  const bool all_first = GENERATE(false, true);  // are created before one of them has tokens
  CAPTURE(c.workers, c.layers, c.kv_heads, c.replicas, all_first);
  LocalCluster cluster({.workers = c.workers});
  Coordinator& service = cluster.service();
  ContextSpec spec = SpecOf(c.layers, c.heads, c.kv_heads);
  spec.placement = c.placement;
  spec.replicas = c.replicas;
  Rng rng(7);
  const LayerKv kv(spec, 1000, rng);
  std::vector<ContextId> ids;
  for (int i = 0; i < 64; ++i) {
    const auto context = service.Call(spec, {});
    REQUIRE(context.ok());
    ids.push_back(context->id);
    // Of whatever length, if the next one's place may follow from it.
    if (!all_first) Append(service, context->id, kv, c.layers, rng.Between(1, 1000));
  }
  if (all_first) {
    for (const ContextId id : ids) Append(service, id, kv, c.layers, 500);
  }
  CHECK(Unfairness(cluster, c.workers) <= 1.1);
}

TEST_CASE("A full worker hinders no short context while others have room") {
  LocalCluster cluster({.workers = 4, .kv_bytes_limit = 1 << 20});
  Coordinator& service = cluster.service();
  const ContextSpec spec = SpecOf(1, 2, 2);
  Rng rng(8);
  const LayerKv kv(spec, 2000, rng);
  // 32 blocks of two heads, 2 KiB each: 8 contexts fill a worker.
  for (int i = 0; i < 32; ++i) {
    CAPTURE(i);
    const auto context = service.Call(spec, {});
    REQUIRE(context.ok());
    REQUIRE(service.Call(kv.Append(context->id, 0, 0, 2000), {}).ok());
  }
  const auto more = service.Call(spec, {});
  REQUIRE(more.ok());
  CHECK(absl::IsResourceExhausted(service.Call(kv.Append(more->id, 0, 0, 2000), {}).status()));
}

}  // namespace
}  // namespace annulus
