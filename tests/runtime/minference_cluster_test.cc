// minference(v,s) in the service, over whole clusters in threads: prompts see what its float64
// reference shows, steps bring the list, and what cannot be is refused by name.
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/rng.h"
#include "tests/attention/reference_minference.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"
#include "tests/runtime/prompt_calls.h"

namespace annulus {
namespace {

using test::CheckAnswer, test::Fill;
using test::LayerKv;
using test::LocalCluster;

constexpr int64_t kTokens = 400;
constexpr int64_t kQueries = 150;
const std::string kWord = "minference(40,110)";

CallList Reference(const LayerKv& kv, const TensorView& q, float scale) {
  return test::ReferenceMInferenceList(40, 110, q, kTokens - q.tokens, kv.k, kTokens, scale);
}

TEST_CASE("a prompt sees what MInference's reference shows, at every number of workers") {
  const int world = GENERATE(1, 2, 3, 4, 7);
  LocalCluster cluster({.workers = world});
  Service& service = cluster.service();
  Rng rng(164);
  ContextSpec spec = test::SmallF32Spec();
  const LayerKv kv(spec, kTokens + 1, rng);
  const Tensor q = test::RandomTensor(kQueries, 4, 16, rng);
  const ContextId id = Fill(service, spec, kv, kTokens);
  AttendRequest request{.context = id, .q_start = kTokens - kQueries, .kv_len = kTokens, .q = q};
  request.pattern = absl::StrCat(kWord, " | causal & window(2)");
  const CallList expected = Reference(kv, q, 0.25f);
  const Partial oracle = test::Oracle(spec, kv, q, kTokens, request.pattern, {}, {}, {expected});
  CheckAnswer(service, request, oracle, 1e-6);
  // Another scale makes other weights, and so other keys.
  request.scale = 2;
  const auto sharp = service.Call(request, CallContext());
  REQUIRE(sharp.ok());
  CHECK(test::WorstError(sharp->out, sharp->lse, oracle) > 1e-3);
  request.scale = 0;
  // Select gives the list, which attends to the same, and a fork has the same.
  SelectRequest select{.context = id, .q_start = kTokens - kQueries, .kv_len = kTokens, .q = q};
  select.pattern = request.pattern;
  const auto selected = service.Call(select, CallContext());
  INFO(selected.status());
  REQUIRE(selected.ok());
  REQUIRE(selected->lists.size() == 1);
  CHECK(selected->lists[0].name == kWord);
  CHECK(selected->lists[0].data->rows == KeyListData::Rows::kVerticalSlash);
  select.pattern = absl::StrCat(kWord, " | moba(64,2)");
  const auto both = service.Call(select, CallContext());
  REQUIRE(both.ok());
  REQUIRE(both->lists.size() == 2);
  CHECK(both->lists[1].data->keys == selected->lists[0].data->keys);
  const auto fork = service.Call(ForkRequest{id, kTokens}, CallContext());
  REQUIRE(fork.ok());
  request.context = fork->id;
  for (const bool given : {false, true}) {
    if (given) request.lists = selected->lists;
    CheckAnswer(service, request, oracle, 1e-6);
  }
  // A step brings the list, or is refused.
  StepRequest step = kv.Step(id, 0, kTokens, q.view().Tokens(0, 1));
  step.pattern = kWord;
  const StepResults refused = test::Step(service, {step});
  CHECK(absl::IsInvalidArgument(refused[0].status()));
  CHECK(absl::StrContains(refused[0].status().message(),
                          "minference(40,110) chooses by the last queries of a prompt; expected"));
  step.lists = selected->lists;
  const StepResults stepped = test::Step(service, {step});
  INFO(stepped[0].status());
  CHECK(stepped[0].ok());
}

TEST_CASE("what MInference's words cannot be is refused by name") {
  LocalCluster cluster({.workers = 2});
  Service& service = cluster.service();
  Rng rng(165);
  ContextSpec spec = test::SmallF32Spec();
  LayerKv kv(spec, kTokens, rng);
  kv.k.f32()[0] = 1e38f;
  const ContextId id = Fill(service, spec, kv, kTokens);
  const Tensor q = test::RandomTensor(70, 4, 16, rng);
  AttendRequest request{.context = id, .q_start = kTokens - 70, .kv_len = kTokens, .q = q};
  request.pattern = kWord;
  const auto refused = [&](absl::string_view why) {
    const absl::Status status = service.Call(request, CallContext()).status();
    INFO(status);
    CHECK(absl::IsInvalidArgument(status));
    CHECK(absl::StrContains(status.message(), why));
  };
  refused("has a score that is not finite or passes 2^28; expected smaller ones");
  request.q_start = kTokens - 60;
  refused("expected positions below kv_len, 400");
  request.q_start = kTokens - 70;
  request.q.dim = 8;
  refused("q");
  spec.kv_efficient = true;
  spec.patterns = {kWord};
  CHECK(absl::StrContains(service.Call(spec, CallContext()).status().message(),
                          "minference(40,110) chooses among all keys"));
}

}  // namespace
}  // namespace annulus
