// Calls beside a client that truncates their context and appends other rows, again and again: an
// answer is that of one state, or there is none.
#include "absl/strings/str_cat.h"
#include "base/rng.h"
#include "tests/attention/reference_lists.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"

namespace annulus {
namespace {

using test::LayerKv;
using test::LocalCluster;

constexpr int64_t kTokens = 400;
constexpr int64_t kQueries = 70;

// A context of two states, which change whenever a call asks whether its caller still waits. That
// is after each of its messages too, and so between any two of its trips.
struct Flipped {
  Flipped(Service& service, uint64_t seed) : service(service), rng(seed) {
    for (LayerKv& kv : states) kv = LayerKv(spec, kTokens + 1, rng);
    id = service.Call(spec, CallContext()).value().id;
    REQUIRE(service.Call(states[0].Append(id, 0, 0, kTokens), CallContext()).ok());
  }

  // Not while a step's append is in flight.
  void Flip() {
    if (!service.Call(TruncateRequest{id, 0}, CallContext()).ok()) return;
    state = 1 - state;
    CHECK(service.Call(states[state].Append(id, 0, 0, kTokens), CallContext()).ok());
  }
  CallContext Call() {
    CallContext call;
    call.cancelled = [this] {
      Flip();
      return false;
    };
    return call;
  }
  absl::Status Overtaken() const {
    return absl::AbortedError(
        absl::StrCat("context ", id, ", layer 0: was truncated during the call"));
  }
  AttendRequest Attend(const Tensor& q, std::string pattern) const {
    AttendRequest request{
        .context = id, .q_start = kTokens - q.tokens(), .kv_len = kTokens, .q = q};
    request.pattern = std::move(pattern);
    return request;
  }

  Service& service;
  Rng rng;
  ContextSpec spec = test::SmallF32Spec();
  LayerKv states[2];
  int state = 0;
  ContextId id = 0;
};

TEST_CASE("a call of several trips is aborted if its context was truncated between them") {
  LocalCluster cluster({.workers = 2});
  Service& service = cluster.service();
  Flipped context(service, 500);
  const Tensor q = test::RandomTensor(kQueries, 4, 16, context.rng);
  for (const char* pattern :
       {"causal & (sink(4) | quest(96))", "moba(64,3)", "nsa(3)", "minference(40,110)"}) {
    CAPTURE(pattern);
    CHECK(service.Call(context.Attend(q, pattern), context.Call()).status() == context.Overtaken());
  }
  for (const char* pattern : {"minference(40,110)", "minference(40,110) | quest(96)"}) {
    CAPTURE(pattern);
    SelectRequest select{
        .context = context.id, .q_start = kTokens - kQueries, .kv_len = kTokens, .q = q};
    select.pattern = pattern;
    CHECK(service.Call(select, context.Call()).status() == context.Overtaken());
  }
  CompressRequest compress{
      .context = context.id, .q_start = kTokens - kQueries, .kv_len = kTokens, .q = q};
  compress.rule = {.keep = 130, .recent = 20, .pool_width = 5};
  compress.into = service.Call(context.spec, CallContext()).value().id;
  CHECK(service.Call(compress, context.Call()).status() == context.Overtaken());
  const Tensor one = test::RandomTensor(1, 4, 16, context.rng);
  StepRequest step = context.states[0].Step(context.id, 0, kTokens, one);
  step.pattern = "moba(64,3)";
  CHECK(test::Step(service, {&step, 1}, context.Call())[0].status() == context.Overtaken());
}

TEST_CASE("a call of one trip answers as one of the states does") {
  const bool chooses = GENERATE(false, true);
  LocalCluster cluster({.workers = chooses ? 1 : 2});
  Flipped context(cluster.service(), 501);
  const Tensor q = test::RandomTensor(5, 4, 16, context.rng);
  const std::string pattern = chooses ? "moba(64,3)" : "causal";
  for (int i = 0; i < 5; ++i) {
    const auto answer = cluster.service().Call(context.Attend(q, pattern), context.Call());
    INFO(answer.status());
    REQUIRE(answer.ok());
    double worst = INFINITY;
    for (const LayerKv& kv : context.states) {
      std::vector<CallList> lists;
      if (chooses) lists = {test::ReferenceList(pattern, q, kTokens - 5, kv.k, kTokens)};
      const Partial oracle = test::Oracle(context.spec, kv, q, kTokens, pattern, {}, {}, lists);
      worst = std::min(worst, test::WorstError(answer->out, answer->lse, oracle));
    }
    CHECK(worst < 1e-6);
  }
}

TEST_CASE("cuts of a fork, and those that take nothing, leave a call of several trips alone") {
  LocalCluster cluster({.workers = 2});
  Service& service = cluster.service();
  Flipped context(service, 502);
  const auto fork = service.Call(ForkRequest{context.id, {}}, CallContext());
  REQUIRE(fork.ok());
  CallContext call;
  int64_t left = kTokens;
  call.cancelled = [&] {
    if (left > 0) CHECK(service.Call(TruncateRequest{fork->id, --left}, CallContext()).ok());
    CHECK(service.Call(TruncateRequest{context.id, kTokens}, CallContext()).ok());
    return false;
  };
  const Tensor q = test::RandomTensor(5, 4, 16, context.rng);
  const auto answer = service.Call(context.Attend(q, "moba(64,3)"), call);
  INFO(answer.status());
  REQUIRE(answer.ok());
  CHECK(left < kTokens);
  const CallList list =
      test::ReferenceList("moba(64,3)", q, kTokens - 5, context.states[0].k, kTokens);
  const Partial oracle =
      test::Oracle(context.spec, context.states[0], q, kTokens, "moba(64,3)", {}, {}, {list});
  CHECK(test::WorstError(answer->out, answer->lse, oracle) < 1e-6);
}

}  // namespace
}  // namespace annulus
