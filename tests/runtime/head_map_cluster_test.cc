// Contexts whose heads differ, placed by heads: what workers hold is even, and answers are the
// oracle's whatever heads a worker serves.
#include "absl/time/clock.h"
#include "base/rng.h"
#include "runtime/context/layout.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"

namespace annulus {
namespace {

using test::LayerKv;
using test::LocalCluster;

constexpr int64_t kTokens = 9000;
constexpr char kDense[] = "s2(64,16,16,dense_heads=2)";

ContextSpec SpecOf(Placement placement, bool kv_efficient) {
  ContextSpec spec;
  spec.heads = 32;
  spec.kv_heads = 8;
  spec.head_dim = spec.v_head_dim = 8;
  spec.dtype = DType::kF32;
  spec.placement = placement;
  spec.partition = {PartitionKind::kBlockCyclic, 16};
  spec.patterns = {kDense};
  spec.kv_efficient = kv_efficient;
  return spec;
}

// Of the fullest worker over the mean.
double Evenness(LocalCluster& cluster, int workers) {
  int64_t most = 0, sum = 0;
  for (int i = 0; i < workers; ++i) {
    const int64_t bytes = cluster.worker(i).Snapshot().kv_bytes;
    most = std::max(most, bytes);
    sum += bytes;
  }
  return static_cast<double>(most) * workers / static_cast<double>(sum);
}

// Once a worker is lost, the context moves to where it has two copies again.
template <typename Call, typename StatusOf>
auto Retried(Call call, StatusOf status_of) {
  const absl::Time end = absl::Now() + absl::Seconds(60);
  auto result = call();
  while (absl::IsUnavailable(status_of(result)) && absl::Now() < end) {
    absl::SleepFor(absl::Milliseconds(1));
    result = call();
  }
  return result;
}

class Filled {
 public:
  Filled(Service& service, const ContextSpec& spec, int64_t tokens, Rng& rng)
      : service_(service), spec_(spec), kv_(spec, tokens + 100, rng), rng_(rng) {
    id = service.Call(spec, {}).value().id;
    Append(id, 0, tokens - 64);
    Append(id, tokens - 64, 64);
  }

  void Append(ContextId to, int64_t start, int64_t tokens) {
    const absl::Status status = service_.Call(kv_.Append(to, 0, start, tokens), {}).status();
    INFO(status);
    REQUIRE(status.ok());
  }

  // One token more, and its queries.
  void Step(ContextId to, int64_t start) {
    const Tensor q = test::RandomTensor(1, spec_.heads, spec_.head_dim, rng_);
    StepRequest step = kv_.Step(to, 0, start, q);
    step.key = {1, static_cast<uint64_t>(start) + 1};
    const StepResults results = Retried(
        [&] {
          return test::Step(service_, {&step, 1});
        },
        [](const StepResults& r) { return r[0].status(); });
    INFO(results[0].status());
    REQUIRE(results[0].ok());
    const Partial oracle = test::Oracle(spec_, kv_, q, start + 1, kDense);
    CHECK(test::WorstError(results[0]->out, results[0]->lse, oracle) < 1e-6);
  }

  void Attend(ContextId to, int64_t kv_len, int64_t q_tokens, std::optional<PlanKind> plan) {
    const Tensor q = test::RandomTensor(q_tokens, spec_.heads, spec_.head_dim, rng_);
    AttendRequest request;
    request.context = to;
    request.q = q;
    request.kv_len = kv_len;
    request.q_start = kv_len - q_tokens;
    request.plan = plan;
    const auto answer = Retried([&] { return service_.Call(request, {}); },
                                [](const auto& result) { return result.status(); });
    INFO(answer.status());
    REQUIRE(answer.ok());
    CHECK(answer->stats.bytes_moved == answer->stats.planned_bytes);
    const Partial oracle = test::Oracle(spec_, kv_, q, kv_len, kDense);
    CHECK(test::WorstError(answer->out, answer->lse, oracle) < 1e-6);
  }

  ContextId id = 0;

 private:
  Service& service_;
  const ContextSpec spec_;
  LayerKv kv_;
  Rng& rng_;
};

TEST_CASE("Workers of a KV-efficient context with dense heads hold the same, and answer right") {
  const int workers = GENERATE(1, 2, 3, 4, 7);
  const Placement placement = GENERATE(Placement::kHeads, Placement::kMesh);
  CAPTURE(workers, static_cast<int>(placement));
  Rng rng(static_cast<uint64_t>(workers));
  LocalCluster cluster({.workers = workers});
  Filled context(cluster.service(), SpecOf(placement, /*kv_efficient=*/true), kTokens, rng);
  if (placement == Placement::kHeads) CHECK(Evenness(cluster, workers) <= 1.05);
  context.Step(context.id, kTokens);
  context.Attend(context.id, kTokens + 1, 3, {});
  context.Attend(context.id, kTokens + 1, 1, PlanKind::kGroupCast);
}

TEST_CASE("Forks, cuts and plans of a context placed by heads of unlike weight") {
  const int workers = GENERATE(3, 4);
  const Placement placement = GENERATE(Placement::kHeads, Placement::kMesh);
  CAPTURE(workers, static_cast<int>(placement));
  Rng rng(static_cast<uint64_t>(workers) + 20);
  LocalCluster cluster({.workers = workers});
  const ContextSpec spec = SpecOf(placement, /*kv_efficient=*/false);
  const HeadMap heads = HeadMapOf(spec, workers);
  const HeadMap even = HeadMap::Even(heads.groups(), spec.heads, spec.kv_heads);
  CHECK((heads == even) == (heads.groups() == 1));
  Filled context(cluster.service(), spec, 2000, rng);
  for (const PlanKind kind : kPlanKinds) {
    CAPTURE(std::string(Name(kind)));
    context.Attend(context.id, 2000, 40, kind);
  }
  const auto fork = cluster.service().Call(ForkRequest{context.id, {}}, {});
  REQUIRE(fork.ok());
  REQUIRE(cluster.service().Call(TruncateRequest{fork->id, 1900}, {}).ok());
  context.Step(fork->id, 1900);
  context.Step(context.id, 2000);
  context.Attend(fork->id, 1901, 5, {});
}

// Two head groups by five of tokens, of which each merges on the way what several ranges hold.
TEST_CASE("Partials of several ranges of heads merge among workers") {
  Rng rng(30);
  LocalCluster cluster({.workers = 10});
  ContextSpec spec = SpecOf(Placement::kMesh, /*kv_efficient=*/false);
  spec.partition = {PartitionKind::kBlockCyclic, 1};
  const HeadMap heads = HeadMapOf(spec, 10);
  REQUIRE(heads.groups() == 2);
  CHECK(heads.QueryHeads(0).size() + heads.QueryHeads(1).size() > 2);
  Filled context(cluster.service(), spec, 1500, rng);
  for (int64_t at = 1500; at < 1504; ++at) context.Step(context.id, at);
}

TEST_CASE("A context of unlike heads goes on from its copies, and moves where there is room") {
  Rng rng(40);
  LocalCluster cluster({.workers = 6});
  ContextSpec spec = SpecOf(Placement::kHeads, /*kv_efficient=*/true);
  spec.replicas = 2;
  Filled context(cluster.service(), spec, 3000, rng);
  context.Step(context.id, 3000);
  cluster.Kill(2);
  for (int64_t at = 3001; at < 3005; ++at) context.Step(context.id, at);
  context.Attend(context.id, 3005, 2, {});
}

}  // namespace
}  // namespace annulus
