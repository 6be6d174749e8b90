// Keys chosen by data in the service, over whole clusters in threads: what queries see is what each
// word's float64 reference chooses, whatever the cluster does.
#include <cmath>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "base/rng.h"
#include "tests/attention/reference_lists.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"

namespace annulus {
namespace {

using test::LayerKv;
using test::LocalCluster;

constexpr int64_t kTokens = 600;

// Whole numbers of few values: scores tie, and are exact in any order.
void MakeTies(Tensor* tensor) {
  for (int64_t i = 0; i < tensor->view().size(); ++i) {
    tensor->f32()[i] = tensor->f32()[i] < 0 ? 0.0f : 1.0f;
  }
  // Tokens repeat every 192: units do, and so their scores.
  const int64_t row = tensor->heads() * tensor->dim();
  for (int64_t t = 192; t < tensor->tokens(); ++t) {
    std::copy_n(tensor->f32() + (t - 192) * row, row, tensor->f32() + t * row);
  }
}

struct Filled {
  Filled(Service& service, ContextSpec of, Rng& rng, bool ties = false) : spec(std::move(of)) {
    kv = LayerKv(spec, kTokens + 16, rng);
    if (ties) MakeTies(&kv.k);
    id = service.Call(spec, CallContext()).value().id;
    CHECK(service.Call(kv.Append(id, 0, 0, 256), CallContext()).ok());
    CHECK(service.Call(kv.Append(id, 0, 256, kTokens - 256), CallContext()).ok());
  }

  ContextSpec spec;
  LayerKv kv;
  ContextId id = 0;
};

struct Words {
  std::string pattern;
  std::vector<std::string> words;  // in it, with all arguments
};

const Words kWords[] = {
    {"causal & (sink(4) | window(20) | quest(96))", {"quest(96,16)"}},
    {"moba(64,3)", {"moba(64,3)"}},
    {"heads(0: moba(128,2); 1: quest(192,64)) | window(3)", {"moba(128,2)", "quest(192,64)"}},
    {"nsa(3) | heads(0: nsa(2,128); 1: window(9))", {"nsa(3,64)", "nsa(2,128)"}},
};

std::vector<CallList> ListsOf(const Words& words, const Filled& context, const TensorView& q,
                              int64_t q_start, int64_t kv_len) {
  std::vector<CallList> lists;
  for (const std::string& word : words.words) {
    lists.push_back(test::ReferenceList(word, q, q_start, context.kv.k, kv_len));
  }
  return lists;
}

void CheckAttend(Service& service, const Filled& context, ContextId id, const Words& words,
                 const TensorView& q, int64_t kv_len, std::optional<PlanKind> plan = {}) {
  AttendRequest request;
  request.context = id;
  request.q = q;
  request.kv_len = kv_len;
  request.q_start = kv_len - q.tokens;
  request.pattern = words.pattern;
  request.plan = plan;
  const auto answer = service.Call(request, CallContext());
  INFO(answer.status());
  REQUIRE(answer.ok());
  const auto lists = ListsOf(words, context, q, request.q_start, kv_len);
  const Partial oracle =
      test::Oracle(context.spec, context.kv, q, kv_len, words.pattern, {}, {}, lists);
  CHECK(test::WorstError(answer->out, answer->lse, oracle) < 1e-6);
}

TEST_CASE("Attend chooses the reference's keys, whatever the plan, placement, cut and ties") {
  const int world = GENERATE(1, 2, 3, 4, 7);
  LocalCluster cluster({.workers = world});
  Rng rng(static_cast<uint64_t>(world) + 70);
  for (const Placement placement : {Placement::kTokens, Placement::kHeads, Placement::kMesh}) {
    for (const bool ties : {false, true}) {
      ContextSpec spec = test::SmallF32Spec();
      spec.placement = placement;
      spec.partition.unit_blocks = ties ? 1 : 2;
      const Filled context(cluster.service(), spec, rng, ties);
      for (const Words& words : kWords) {
        Tensor q = test::RandomTensor(rng.Below(2) == 0 ? 1 : 70, 4, 16, rng);
        if (ties) MakeTies(&q);
        CAPTURE(world, static_cast<int>(placement), ties, words.pattern, q.tokens());
        CheckAttend(cluster.service(), context, context.id, words, q, kTokens);
        CheckAttend(cluster.service(), context, context.id, words, q, kTokens - 90,
                    PlanKind::kPassQ);
        CheckAttend(cluster.service(), context, context.id, words, q, kTokens - 7,
                    PlanKind::kGroupCast);
      }
    }
  }
}

const Words kBlockWords[] = {
    {"xattention(0.6,16,64)", {"xattention(0.6,16,64)"}},
    {"heads(0: xattention(0.8,8); 1: causal) | biformer(16,5)",
     {"xattention(0.8,8,128)", "biformer(16,5)"}},
    {"biformer(64,3) | window(5)", {"biformer(64,3)"}},
};

TEST_CASE("blocks of queries choose the reference's keys, wherever a call's first one lies") {
  const int world = GENERATE(1, 2, 3, 4, 7);
  LocalCluster cluster({.workers = world});
  Rng rng(static_cast<uint64_t>(world) + 75);
  for (const Placement placement : {Placement::kTokens, Placement::kHeads, Placement::kMesh}) {
    const bool ties = placement == Placement::kHeads;
    ContextSpec spec = test::SmallF32Spec();
    spec.placement = placement;
    spec.partition.unit_blocks = 1;
    const Filled context(cluster.service(), spec, rng, ties);
    for (const Words& words : kBlockWords) {
      Tensor q = test::RandomTensor(placement == Placement::kMesh ? 128 : 70, 4, 16, rng);
      if (ties) MakeTies(&q);
      CAPTURE(world, static_cast<int>(placement), words.pattern);
      CheckAttend(cluster.service(), context, context.id, words, q, 576);
      CheckAttend(cluster.service(), context, context.id, words, q, 512, PlanKind::kPassQ);
    }
  }
}

TEST_CASE("a decode call is refused by a word for prefill alone, and leaves nothing behind") {
  LocalCluster cluster({.workers = 2});
  Rng rng(76);
  const Filled context(cluster.service(), test::SmallF32Spec(), rng);
  const Tensor q = test::RandomTensor(1, 4, 16, rng);
  StepRequest step = context.kv.Step(context.id, 0, kTokens, q);
  step.pattern = "causal & (window(9) | xattention(0.9))";
  const absl::Status refused = test::Step(cluster.service(), {&step, 1})[0].status();
  CHECK(absl::IsInvalidArgument(refused));
  CHECK(absl::StrContains(refused.message(),
                          "pattern: xattention(0.9,16,128) is for prefill: 1 queries; expected"));
  step.pattern = "nsa(4)";
  CHECK(test::Step(cluster.service(), {&step, 1})[0].ok());
}

TEST_CASE("a selection in bf16 keeps to twice the error of rounding, from pages of a device too") {
  LocalCluster cluster({.workers = 3, .backend = "cpu", .fake_device = true});
  Rng rng(71);
  ContextSpec spec = test::SmallF32Spec();
  spec.dtype = DType::kBF16;
  const Filled context(cluster.service(), spec, rng);
  for (const Words& words : kWords) {
    const Tensor q = test::RandomTensor(9, 4, 16, rng);
    AttendRequest request{.context = context.id, .q_start = kTokens - 9, .kv_len = kTokens, .q = q};
    request.pattern = words.pattern;
    const auto answer = cluster.service().Call(request, CallContext());
    INFO(answer.status());
    REQUIRE(answer.ok());
    const auto lists = ListsOf(words, context, q, kTokens - 9, kTokens);
    const Partial oracle =
        test::Oracle(context.spec, context.kv, q, kTokens, words.pattern, {}, {}, lists);
    CHECK(test::WorstError(answer->out, answer->lse, oracle) < 2.0 / 256);
  }
}

StepRequest StepOf(const Filled& context, ContextId id, int64_t at, const TensorView& q) {
  return context.kv.Step(id, 0, at, q);
}

TEST_CASE("steps append, choose and attend, beside steps that choose nothing and again by a key") {
  const int world = GENERATE(1, 3, 6);
  LocalCluster cluster({.workers = world});
  Rng rng(static_cast<uint64_t>(world) + 80);
  std::vector<Filled> contexts;
  for (int i = 0; i < 4; ++i) contexts.emplace_back(cluster.service(), test::SmallF32Spec(), rng);
  for (int64_t at = kTokens; at < kTokens + 4; ++at) {
    std::vector<Tensor> q;
    std::vector<StepRequest> steps;
    for (size_t i = 0; i < contexts.size(); ++i) {
      q.push_back(test::RandomTensor(1, 4, 16, rng));
      steps.push_back(StepOf(contexts[i], contexts[i].id, at, q.back()));
      if (i < std::size(kWords)) steps.back().pattern = kWords[i].pattern;
      steps.back().key = {.client = 7, .sequence = static_cast<uint64_t>(at) * 10 + i};
    }
    for (int again = 0; again < 2; ++again) {
      const StepResults results = test::Step(cluster.service(), steps);
      for (size_t i = 0; i < contexts.size(); ++i) {
        CAPTURE(world, at, i, again);
        INFO(results[i].status());
        REQUIRE(results[i].ok());
        CHECK(results[i]->tokens == at + 1);
        const bool chooses = i < std::size(kWords);
        const auto lists =
            chooses ? ListsOf(kWords[i], contexts[i], q[i], at, at + 1) : std::vector<CallList>();
        const Partial oracle = test::Oracle(contexts[i].spec, contexts[i].kv, q[i], at + 1,
                                            chooses ? kWords[i].pattern : "causal", {}, {}, lists);
        CHECK(test::WorstError(results[i]->out, results[i]->lse, oracle) < 1e-6);
      }
    }
  }
}

TEST_CASE(
    "a context's own pattern may choose, and forks, cuts and a lost worker leave the choice") {
  LocalCluster cluster({.workers = 4});
  Rng rng(90);
  ContextSpec spec = test::SmallF32Spec();
  spec.replicas = 2;
  const Words words = GENERATE(
      Words{"moba(64,3)", {"moba(64,3)"}},
      Words{"nsa(3) | heads(0: nsa(2,128); 1: window(9))", {"nsa(3,64)", "nsa(2,128)"}},
      Words{"xattention(0.6,4,64) | biformer(4,30)", {"xattention(0.6,4,64)", "biformer(4,30)"}});
  spec.patterns = {words.pattern};
  const Filled context(cluster.service(), spec, rng);
  const auto check = [&](ContextId id, int64_t kv_len) {
    const Tensor q = test::RandomTensor(5, 4, 16, rng);
    AttendRequest request{.context = id, .q_start = kv_len - 5, .kv_len = kv_len, .q = q};
    absl::StatusOr<AttendResult> answer;
    for (int i = 0; i < 100; ++i) {
      answer = cluster.service().Call(request, CallContext());
      if (!absl::IsUnavailable(answer.status())) break;
      absl::SleepFor(absl::Milliseconds(50));
    }
    INFO(answer.status());
    REQUIRE(answer.ok());
    const auto lists = ListsOf(words, context, q, kv_len - 5, kv_len);
    const Partial oracle =
        test::Oracle(context.spec, context.kv, q, kv_len, words.pattern, {}, {}, lists);
    CHECK(test::WorstError(answer->out, answer->lse, oracle) < 1e-6);
  };
  check(context.id, kTokens);
  const auto fork = cluster.service().Call(ForkRequest{context.id, 500}, CallContext());
  REQUIRE(fork.ok());
  check(fork->id, 500);
  // The fork goes on with other tokens: they are its own alone.
  REQUIRE(cluster.service().Call(TruncateRequest{fork->id, 300}, CallContext()).ok());
  REQUIRE(cluster.service().Call(context.kv.Append(fork->id, 0, 300, 200), CallContext()).ok());
  check(fork->id, 500);
  check(context.id, kTokens);
  cluster.Kill(1);
  check(context.id, kTokens);
  check(fork->id, 480);
}

TEST_CASE("what a selection cannot be is refused by name") {
  LocalCluster cluster({.workers = 2});
  Rng rng(91);
  const Filled context(cluster.service(), test::SmallF32Spec(), rng);
  const Tensor q = test::RandomTensor(1, 4, 16, rng);
  AttendRequest request{.context = context.id, .q_start = kTokens - 1, .kv_len = kTokens, .q = q};
  const auto refused = [&](absl::string_view why) {
    const absl::Status status = cluster.service().Call(request, CallContext()).status();
    INFO(status);
    CHECK(absl::IsInvalidArgument(status));
    CHECK(absl::StrContains(status.message(), why));
  };
  request.pattern = "moba(96,2)";
  refused("pattern: at 6: 96; expected a divisor of 64 or a multiple of it");
  request.pattern = "quest(64)";
  request.q.dim = 8;
  refused("q");
  ContextSpec spec = test::SmallF32Spec();
  spec.kv_efficient = true;
  spec.patterns = {"moba(64,2)"};
  CHECK(absl::StrContains(cluster.service().Call(spec, CallContext()).status().message(),
                          "patterns[0]: moba(64,2) chooses among all keys; expected none"));
  spec.patterns = {"s2(64,1,4)"};
  const Filled efficient(cluster.service(), spec, rng);
  request.q.dim = 16;
  request.context = efficient.id;
  refused("quest(64,16) chooses among all keys; expected none in a context that is kv_efficient");
  // A list that is given is taken for the choice.
  request.context = context.id;
  const CallList given = test::ReferenceList("quest(48,16)", q, kTokens - 1, context.kv.k, kTokens);
  request.lists = {{"quest(64,16)", given.data}};
  const auto answer = cluster.service().Call(request, CallContext());
  REQUIRE(answer.ok());
  const Partial oracle =
      test::Oracle(context.spec, context.kv, q, kTokens, "quest(64)", {}, {}, request.lists);
  CHECK(test::WorstError(answer->out, answer->lse, oracle) < 1e-6);
}

TEST_CASE("Select gives the reference's lists, which attends and steps of other layers may bring") {
  const int world = GENERATE(1, 3);
  LocalCluster cluster({.workers = world});
  Service& service = cluster.service();
  Rng rng(static_cast<uint64_t>(world) + 92);
  ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
  const Filled context(service, spec, rng);
  const LayerKv other(spec, kTokens, rng);
  REQUIRE(service.Call(other.Append(context.id, 1, 0, kTokens), CallContext()).ok());
  const Tensor q = test::RandomTensor(3, 4, 16, rng);
  SelectRequest request{.context = context.id,
                        .q_start = kTokens - 3,
                        .kv_len = kTokens,
                        .q = q,
                        .pattern = kWords[2].pattern};
  const auto chosen = service.Call(request, CallContext());
  INFO(chosen.status());
  REQUIRE(chosen.ok());
  const auto lists = ListsOf(kWords[2], context, q, kTokens - 3, kTokens);
  REQUIRE(chosen->lists.size() == lists.size());
  for (size_t i = 0; i < lists.size(); ++i) {
    CHECK(chosen->lists[i].name == lists[i].name);
    CHECK(chosen->lists[i].data->keys == lists[i].data->keys);
    CHECK(chosen->lists[i].data->begin == lists[i].data->begin);
    CHECK(chosen->lists[i].data->q_begin == kTokens - 3);
  }
  StepRequest step;
  step.context = context.id;
  step.layer = 1;
  step.start = kTokens;
  step.q = q;
  step.pattern = kWords[2].pattern;
  step.lists = chosen->lists;
  const StepResults results = test::Step(service, {&step, 1});
  REQUIRE(results[0].ok());
  const Partial oracle = test::Oracle(spec, other, q, kTokens, step.pattern, {}, {}, lists);
  CHECK(test::WorstError(results[0]->out, results[0]->lse, oracle) < 1e-6);
  request.pattern = "causal";
  const absl::Status none = service.Call(request, CallContext()).status();
  CHECK(absl::IsInvalidArgument(none));
  CHECK(absl::StrContains(none.message(), "pattern: no word chooses keys by data; expected one"));
  request.pattern = "moba(64,2)";
  request.kv_len = kTokens + 1;
  CHECK(absl::StrContains(service.Call(request, CallContext()).status().message(), "kv_len"));
  request.kv_len = kTokens;
  request.weights = {1};
  CHECK(absl::StrContains(service.Call(request, CallContext()).status().message(),
                          "weights: 1; expected none"));
}

}  // namespace
}  // namespace annulus
