// Queries anywhere over any range of a context's keys, through the service: every plan against the
// oracle, parts that merge to the whole, and what a KV-efficient context no longer has.
#include "absl/strings/match.h"
#include "attention/partial.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"

namespace annulus {
namespace {

using test::LayerKv;
using test::LocalCluster;

const char* const kPatterns[] = {"causal", "window(90, 40) | sink(3)", "s2(64, 1, 3)",
                                 "causal & docs(100, 50, 70)", "full"};

TEST_CASE("Queries before, among and beyond the keys: the oracle's answer, and parts merge") {
  const int world = GENERATE(1, 2, 3, 4, 5, 6, 7);
  LocalCluster cluster({.workers = world});
  Service& service = cluster.service();
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    Rng rng(seed * 10 + static_cast<uint64_t>(world));
    ContextSpec spec = test::SmallF32Spec();
    spec.placement = static_cast<Placement>(rng.Below(3));
    const int64_t kv_len = rng.Between(221, 600);
    const LayerKv kv(spec, kv_len, rng);
    const ContextId id = service.Call(spec, {})->id;
    REQUIRE(service.Call(kv.Append(id, 0, 0, kv_len), {}).ok());
    const Tensor q = test::RandomTensor(rng.Between(1, 150), spec.heads, spec.head_dim, rng);
    AttendRequest request{.context = id, .kv_len = kv_len, .q = q};
    request.q_start = rng.Between(0, kv_len + 200);
    request.pattern = kPatterns[rng.Below(5)];
    CAPTURE(world, seed, kv_len, request.pattern, request.q_start, q.tokens());

    Partial merged(q.tokens(), spec.heads, spec.v_head_dim);
    for (int64_t begin = 0; begin < kv_len;) {
      const TokenRange keys{begin, rng.Between(begin + 1, kv_len)};
      request.keys_begin = keys.begin;
      request.keys_end = keys.end;
      request.plan = kPlanKinds[rng.Below(std::size(kPlanKinds))];
      CAPTURE(keys.begin, keys.end, Name(*request.plan));
      absl::StatusOr<AttendResult> answer = service.Call(request, {});
      INFO(answer.status());
      REQUIRE(answer.ok());
      CHECK(test::WorstError(
                answer->out, answer->lse,
                test::Oracle(spec, kv, q, kv_len, request.pattern, request.q_start, keys)) < 1e-5);
      CHECK(answer->stats.bytes_moved == answer->stats.planned_bytes);
      Merge(merged.view(),
            {answer->out.f32(), answer->lse.f32(), q.tokens(), spec.heads, spec.v_head_dim});
      begin = keys.end;
    }
    REQUIRE(Finalise(merged.view()).ok());
    CHECK(test::WorstError(merged.out(), merged.lse(),
                           test::Oracle(spec, kv, q, kv_len, request.pattern, request.q_start)) <
          1e-5);
    REQUIRE(service.Call(ReleaseRequest{id}, {}).ok());
  }
}

TEST_CASE("What a KV-efficient context let go of is refused by name, wherever the queries are") {
  LocalCluster cluster({.workers = 2});
  Service& service = cluster.service();
  Rng rng(3);
  ContextSpec spec = test::SmallF32Spec();
  spec.kv_efficient = true;
  spec.patterns = {"causal & window(100)"};
  const LayerKv kv(spec, 640, rng);
  const ContextId id = service.Call(spec, {})->id;
  for (int64_t start = 0; start < 640; start += 64) {
    REQUIRE(service.Call(kv.Append(id, 0, start, 64), {}).ok());
  }
  const Tensor q = test::RandomTensor(3, spec.heads, spec.head_dim, rng);
  AttendRequest request{.context = id, .kv_len = 640, .q = q};
  const auto refused = [&](absl::string_view part) {
    const absl::Status status = service.Call(request, {}).status();
    INFO(status);
    CHECK(absl::IsInvalidArgument(status));
    CHECK(absl::StrContains(status.message(), part));
  };
  request.q_start = 300;
  refused("block");
  request.q_start = 5000;
  request.pattern = "full";
  refused("block 0");
  request.keys_begin = 600;  // which are there
  const absl::StatusOr<AttendResult> answer = service.Call(request, {});
  INFO(answer.status());
  REQUIRE(answer.ok());
  CHECK(test::WorstError(answer->out, answer->lse,
                         test::Oracle(spec, kv, q, 640, "full", 5000, TokenRange{600, 640})) <
        1e-5);
  request.q_start = 655;
  request.pattern = "";
  request.keys_begin = 0;
  CHECK(service.Call(request, {}).ok());
}

}  // namespace
}  // namespace annulus
