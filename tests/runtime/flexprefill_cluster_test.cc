// flexprefill(gamma,tau,min) in the service, over whole clusters in threads: prompts see what its
// float64 reference shows, after forks and cuts too, and what cannot be is refused by name.
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/rng.h"
#include "tests/attention/reference_flexprefill.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"
#include "tests/runtime/prompt_calls.h"

namespace annulus {
namespace {

using test::CheckAnswer, test::Fill;
using test::LayerKv;
using test::LocalCluster;

constexpr int64_t kTokens = 700;
constexpr int64_t kQueries = 330;
// Of 4 heads one is query-aware, as the first test sees.
const test::FlexPrefillWord kWord = {"flexprefill(0.5,0.19,1)", 0.5, 0.19, 1};

AttendRequest Ask(ContextId id, int64_t tokens, const TensorView& q) {
  AttendRequest request{.context = id, .q_start = tokens - q.tokens, .kv_len = tokens, .q = q};
  request.pattern = absl::StrCat(kWord.text, " | causal & window(2)");
  return request;
}

TEST_CASE("a prompt sees what FlexPrefill's reference shows, at every number of workers") {
  const int world = GENERATE(1, 2, 3, 4, 7);
  LocalCluster cluster({.workers = world});
  Service& service = cluster.service();
  Rng rng(166);
  ContextSpec spec = test::SmallF32Spec();
  const LayerKv kv(spec, kTokens + 1, rng);
  const Tensor q = test::RandomTensor(kQueries, 4, 16, rng);
  const ContextId id = Fill(service, spec, kv, kTokens);
  const auto reference = [&](int64_t tokens, int* query_aware) {
    return test::ReferenceFlexPrefillList(kWord, q, tokens - kQueries,
                                          kv.k.view().Tokens(0, tokens), 0.25f, query_aware);
  };
  int query_aware = 0;
  const CallList expected = reference(kTokens, &query_aware);
  CHECK(query_aware == 1);
  AttendRequest request = Ask(id, kTokens, q);
  const Partial oracle = test::Oracle(spec, kv, q, kTokens, request.pattern, {}, {}, {expected});
  CheckAnswer(service, request, oracle, 1e-6);
  // Select gives the list, of the very blocks.
  SelectRequest select{.context = id, .q_start = kTokens - kQueries, .kv_len = kTokens, .q = q};
  select.pattern = request.pattern;
  const auto selected = service.Call(select, CallContext());
  INFO(selected.status());
  REQUIRE(selected.ok());
  REQUIRE(selected->lists.size() == 1);
  CHECK(selected->lists[0].name == kWord.text);
  CHECK(selected->lists[0].data->begin == expected.data->begin);
  CHECK(selected->lists[0].data->keys == expected.data->keys);
  // A fork has the same; and a cut one chooses among what is left.
  const auto fork = service.Call(ForkRequest{id, kTokens}, CallContext());
  REQUIRE(fork.ok());
  request.context = fork->id;
  CheckAnswer(service, request, oracle, 1e-6);
  request.lists = selected->lists;
  CheckAnswer(service, request, oracle, 1e-6);
  constexpr int64_t kLeft = 600;
  REQUIRE(service.Call(TruncateRequest{fork->id, kLeft}, CallContext()).ok());
  request = Ask(fork->id, kLeft, q);
  const Partial cut =
      test::Oracle(spec, kv, q, kLeft, request.pattern, {}, {}, {reference(kLeft, nullptr)});
  CheckAnswer(service, request, cut, 1e-6);
  CHECK(test::WorstError(cut.out(), cut.lse(), oracle) > 1e-3);
  // A step is refused.
  StepRequest step = kv.Step(id, 0, kTokens, q.view().Tokens(0, 1));
  step.pattern = kWord.text;
  const StepResults refused = test::Step(service, {step});
  CHECK(absl::IsInvalidArgument(refused[0].status()));
  CHECK(absl::StrContains(refused[0].status().message(),
                          "flexprefill(0.5,0.19,1) chooses by the last queries of a prompt"));
}

TEST_CASE("FlexPrefill in bf16 keeps to twice the error of rounding, from pages of a device too") {
  LocalCluster cluster({.workers = 3, .backend = "cpu", .fake_device = true});
  Rng rng(168);
  ContextSpec spec = test::SmallF32Spec();
  spec.dtype = DType::kBF16;
  const LayerKv kv(spec, kTokens, rng);
  const Tensor q = test::RandomTensor(kQueries, 4, 16, rng);
  const AttendRequest request = Ask(Fill(cluster.service(), spec, kv, kTokens), kTokens, q);
  const CallList expected =
      test::ReferenceFlexPrefillList(kWord, q, kTokens - kQueries, kv.k, 0.25f);
  const Partial oracle = test::Oracle(spec, kv, q, kTokens, request.pattern, {}, {}, {expected});
  CheckAnswer(cluster.service(), request, oracle, 2.0 / 256);
}

TEST_CASE("what FlexPrefill's words cannot be is refused by name") {
  LocalCluster cluster({.workers = 2});
  Service& service = cluster.service();
  Rng rng(167);
  ContextSpec spec = test::SmallF32Spec();
  const LayerKv kv(spec, kTokens, rng);
  const ContextId id = Fill(service, spec, kv, kTokens);
  Tensor q = test::RandomTensor(kQueries, 4, 16, rng);
  AttendRequest request = Ask(id, kTokens, q);
  const auto refused = [&](absl::string_view why) {
    const absl::Status status = service.Call(request, CallContext()).status();
    INFO(status);
    CHECK(absl::IsInvalidArgument(status));
    CHECK(absl::StrContains(status.message(), why));
  };
  request.q_start += 1;
  refused("expected positions below kv_len, 700");
  request.q_start -= 1;
  request.q.dim = 8;
  refused("q");
  spec.kv_efficient = true;
  spec.patterns = {kWord.text};
  CHECK(absl::StrContains(service.Call(spec, CallContext()).status().message(),
                          "flexprefill(0.5,0.19,1) chooses among all keys"));
}

}  // namespace
}  // namespace annulus
