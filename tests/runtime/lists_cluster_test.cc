// Lists that come with calls, over whole clusters in threads, against the oracle.
#include "absl/strings/match.h"
#include "base/rng.h"
#include "tests/attention/random_list.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"

namespace annulus {
namespace {

using test::LayerKv;
using test::LocalCluster;

constexpr int64_t kTokens = 330;

// With a row for each query of the last 90 tokens.
CallList ListOf(Rng& rng, int heads) {
  RandomList list = MakeRandomList(rng, heads, kTokens, kTokens);
  while (list.data.q_begin > kTokens - 90) list = MakeRandomList(rng, heads, kTokens, kTokens);
  return {"x", std::make_shared<const KeyListData>(std::move(list.data))};
}

struct Filled {
  explicit Filled(Service& service, ContextSpec of, Rng& rng) : spec(std::move(of)) {
    kv = LayerKv(spec, kTokens + 8, rng);
    id = service.Call(spec, CallContext()).value().id;
    CHECK(service.Call(kv.Append(id, 0, 0, 256), CallContext()).ok());
    CHECK(service.Call(kv.Append(id, 0, 256, kTokens - 256), CallContext()).ok());
  }

  ContextSpec spec;
  LayerKv kv;
  ContextId id = 0;
};

AttendRequest AttendOf(ContextId id, const TensorView& q, const CallList& list) {
  AttendRequest request;
  request.context = id;
  request.q = q;
  request.kv_len = kTokens;
  request.q_start = kTokens - q.tokens;
  request.pattern = "list(x) & causal | window(2)";
  request.lists = {list};
  return request;
}

void CheckAttend(Service& service, const Filled& context, ContextId id, const TensorView& q,
                 const CallList& list, std::optional<PlanKind> plan) {
  AttendRequest request = AttendOf(id, q, list);
  request.plan = plan;
  const auto answer = service.Call(request, CallContext());
  INFO(answer.status());
  REQUIRE(answer.ok());
  CHECK(answer->stats.bytes_moved == answer->stats.planned_bytes);
  const Partial oracle =
      test::Oracle(context.spec, context.kv, q, kTokens, request.pattern, {}, {}, request.lists);
  CHECK(test::WorstError(answer->out, answer->lse, oracle) < 1e-6);
}

TEST_CASE("Attend with lists agrees with the oracle, whatever the plan, placement and heads") {
  const int world = GENERATE(1, 2, 3, 4, 7);
  LocalCluster cluster({.workers = world});
  Rng rng(static_cast<uint64_t>(world) + 50);
  for (const Placement placement : {Placement::kTokens, Placement::kHeads, Placement::kMesh}) {
    ContextSpec spec = test::SmallF32Spec();
    spec.placement = placement;
    const Filled context(cluster.service(), spec, rng);
    for (const int heads : {1, 2, 4}) {
      const CallList list = ListOf(rng, heads);
      const Tensor q = test::RandomTensor(rng.Below(2) == 0 ? 1 : 90, 4, 16, rng);
      for (const auto plan : {std::optional<PlanKind>(),
                              {PlanKind::kPassQ},
                              {PlanKind::kGroupCast},
                              {PlanKind::kRing}}) {
        CAPTURE(world, static_cast<int>(placement), heads, q.tokens());
        CheckAttend(cluster.service(), context, context.id, q, list, plan);
      }
    }
    // A fork sees what its parent does, and what is cut off is no place of keys any more.
    const CallList list = ListOf(rng, 2);
    const Tensor q = test::RandomTensor(5, 4, 16, rng);
    const auto fork = cluster.service().Call(ForkRequest{context.id, {}}, CallContext());
    REQUIRE(fork.ok());
    CheckAttend(cluster.service(), context, fork->id, q, list, {});
    REQUIRE(cluster.service().Call(TruncateRequest{fork->id, 100}, CallContext()).ok());
    CheckAttend(cluster.service(), context, context.id, q, list, {});
  }
}

TEST_CASE("steps bring lists of their own, each for its own query") {
  const int world = GENERATE(1, 3, 6);
  LocalCluster cluster({.workers = world});
  Rng rng(static_cast<uint64_t>(world));
  const Filled context(cluster.service(), test::SmallF32Spec(), rng);
  for (int64_t at = kTokens; at < kTokens + 6; ++at) {
    KeyListData data;
    data.unit = at % 2 == 0 ? KeyListData::Unit::kTokens : KeyListData::Unit::kBlocks;
    data.rows = KeyListData::Rows::kToken;
    data.block_tokens = 32;
    data.heads = at % 3 == 0 ? 1 : at % 3 == 1 ? 2 : 4;
    data.q_begin = at;
    data.begin = {0};
    for (int head = 0; head < data.heads; ++head) {
      const int32_t step = static_cast<int32_t>(1 + rng.Below(9));
      const auto end = static_cast<int32_t>(at % 2 == 0 ? at : at / 32);
      for (int32_t key = head % 3; key < end; key += step) data.keys.push_back(key);
      data.begin.push_back(static_cast<int64_t>(data.keys.size()));
    }
    const Tensor q = test::RandomTensor(1, 4, 16, rng);
    StepRequest step = context.kv.Step(context.id, 0, at, q);
    step.pattern = "list(x) | window(3)";
    step.lists = {{"x", std::make_shared<const KeyListData>(std::move(data))}};
    const StepResults results = test::Step(cluster.service(), {&step, 1});
    INFO(results[0].status());
    REQUIRE(results[0].ok());
    const Partial oracle =
        test::Oracle(context.spec, context.kv, q, at + 1, step.pattern, {}, {}, step.lists);
    CHECK(test::WorstError(results[0]->out, results[0]->lse, oracle) < 1e-6);
  }
}

TEST_CASE("what lists cannot be is refused by name, and a KV-efficient context says what is gone") {
  LocalCluster cluster({.workers = 2});
  Rng rng(9);
  const Filled context(cluster.service(), test::SmallF32Spec(), rng);
  const Tensor q = test::RandomTensor(1, 4, 16, rng);
  const auto refused = [&](const AttendRequest& request, absl::string_view why) {
    const absl::Status status = cluster.service().Call(request, CallContext()).status();
    INFO(status);
    CHECK(absl::IsInvalidArgument(status));
    CHECK(absl::StrContains(status.message(), why));
  };
  KeyListData data;
  data.begin = {0, 2};
  data.keys = {1, 5};
  const auto with = [&](const KeyListData& changed) {
    return AttendOf(context.id, q, {"x", std::make_shared<const KeyListData>(changed)});
  };
  AttendRequest request = with(data);
  request.lists.clear();
  refused(request, "lists: no list x; expected one");
  data.keys = {5, 1};
  refused(with(data), "list x: keys[1]: 1; expected more than keys[0], 5");
  data.keys = {1, 6};
  refused(with(data), "list x: keys[1]: 6; expected less than 6, the blocks of the context");
  data.keys = {1, 5};
  data.heads = 3;
  data.begin = {0, 2, 2, 2};
  refused(with(data), "list x: heads: 3; expected 1, 2 (KV heads) or 4 (query heads)");
  data.heads = 1;
  data.begin = {0, 2};
  data.rows = KeyListData::Rows::kToken;
  refused(with(data), "list x: rows of the queries [0, 1); expected rows of all queries");
  request = with(data);
  request.lists[0].data = nullptr;
  refused(request, "list x: null");

  ContextSpec spec = test::SmallF32Spec();
  spec.kv_efficient = true;
  spec.patterns = {"s2(64,1,4)"};
  const Filled efficient(cluster.service(), spec, rng);
  data.rows = KeyListData::Rows::kAll;
  data.keys = {0, 2};
  request = with(data);
  request.context = efficient.id;
  const absl::Status gone = cluster.service().Call(request, CallContext()).status();
  INFO(gone);
  CHECK_FALSE(gone.ok());
  CHECK(absl::StrContains(gone.message(), "block"));
}

}  // namespace
}  // namespace annulus
