// Tracks in the service, over whole clusters in threads: rows beside K and V go where the context
// goes, and the words of an index choose by them what their float64 references choose.
#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "base/rng.h"
#include "tests/attention/reference_lists.h"
#include "tests/catch.h"
#include "tests/runtime/await_whole.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"
#include "tests/runtime/track_inputs.h"

namespace annulus {
namespace {

using namespace test::tracks;
using test::LocalCluster;
using test::RandomTensor;

SelectRequest RequestOf(const Filled& context, ContextId id, const Asked& asked, int64_t kv_len) {
  return {.context = id,
          .layer = context.index,
          .q_start = kv_len - asked.q.tokens(),
          .kv_len = kv_len,
          .q = asked.q,
          .pattern = asked.word,
          .weights = asked.weights};
}

// The lists, which are the reference's.
std::vector<CallList> CheckSelect(Service& service, const Filled& context, ContextId id,
                                  const Asked& asked, int64_t kv_len) {
  const SelectRequest request = RequestOf(context, id, asked, kv_len);
  absl::StatusOr<SelectResult> chosen;
  for (int i = 0; i < 200; ++i) {  // a context that goes on elsewhere is away for a moment
    chosen = service.Call(request, CallContext());
    if (!absl::IsUnavailable(chosen.status())) break;
    absl::SleepFor(absl::Milliseconds(50));
  }
  INFO(chosen.status());
  REQUIRE(chosen.ok());
  REQUIRE(chosen->lists.size() == 1);
  const CallList expected = test::ReferenceList(asked.word, asked.q, request.q_start, context.rows,
                                                kv_len, asked.weights);
  CHECK(chosen->lists[0].name == asked.word);
  CHECK(chosen->lists[0].data->keys == expected.data->keys);
  CHECK(chosen->lists[0].data->begin == expected.data->begin);
  return chosen->lists;
}

const char* const kWords[] = {"dsa(50)", "msa(64,3)", "msa(128,2)"};

TEST_CASE("an index chooses the reference's keys in the service, and layers attend to them") {
  const int world = GENERATE(1, 2, 3, 4, 7);
  LocalCluster cluster({.workers = world});
  Service& service = cluster.service();
  Rng rng(static_cast<uint64_t>(world) + 170);
  for (const Placement placement : {Placement::kTokens, Placement::kHeads, Placement::kMesh}) {
    for (const bool ties : {false, true}) {
      ContextSpec spec = Spec();
      spec.placement = placement;
      const Filled context(service, spec, rng, ties);
      for (const char* word : kWords) {
        const Asked asked = Ask(word, rng.Below(2) == 0 ? 1 : 70, rng, ties);
        CAPTURE(world, static_cast<int>(placement), ties, word, asked.q.tokens());
        const auto lists = CheckSelect(service, context, context.id, asked, kTokens);
        CheckSelect(service, context, context.id, asked, kTokens - 90);
        // IndexShare: another layer sees what this one's index chose.
        const Tensor q = RandomTensor(asked.q.tokens(), 4, 16, rng);
        AttendRequest attend{.context = context.id, .layer = 1, .kv_len = kTokens, .q = q};
        attend.q_start = kTokens - q.tokens();
        attend.pattern = std::string("causal & sink(3) | ") + word;
        attend.lists = lists;
        const auto answer = service.Call(attend, CallContext());
        INFO(answer.status());
        REQUIRE(answer.ok());
        const Partial oracle =
            test::Oracle(spec, context.kv, q, kTokens, attend.pattern, {}, {}, lists);
        CHECK(test::WorstError(answer->out, answer->lse, oracle) < 1e-6);
      }
    }
  }
}

TEST_CASE("a step appends a track's rows beside K and V, and a later one sees what they chose") {
  LocalCluster cluster({.workers = 3});
  Service& service = cluster.service();
  Rng rng(180);
  const Filled context(service, Spec(DType::kBF16), rng);  // whose rows are exact in it
  for (int64_t at = kTokens; at < kTokens + 4; ++at) {
    const Tensor q = RandomTensor(1, 4, 16, rng);
    std::vector<StepRequest> steps(2);
    steps[0].context = steps[1].context = context.id;
    steps[0].start = steps[1].start = at;
    steps[0].k = context.kv.k.view().Tokens(at, 1);
    steps[0].v = context.kv.v.view().Tokens(at, 1);
    steps[1].layer = context.index;
    steps[1].k = context.rows.view().Tokens(at, 1);
    for (const auto& appended : test::Step(service, steps)) {
      INFO(appended.status());
      REQUIRE(appended.ok());
      CHECK(appended->tokens == at + 1);
    }
    const Asked asked = Ask(kWords[at % 3], 1, rng);
    StepRequest step;
    step.context = context.id;
    step.start = at + 1;
    step.q = q;
    step.pattern = asked.word;
    step.lists = CheckSelect(service, context, context.id, asked, at + 1);
    const StepResults results = test::Step(service, {&step, 1});
    REQUIRE(results[0].ok());
    const Partial oracle =
        test::Oracle(context.spec, context.kv, q, at + 1, asked.word, {}, {}, step.lists);
    CHECK(test::WorstError(results[0]->out, results[0]->lse, oracle) < 1e-6);
  }
}

TEST_CASE("tracks are forked, truncated, kept by copies and moved with their context") {
  LocalCluster cluster({.workers = 5, .fake_device = GENERATE(false, true)});
  Service& service = cluster.service();
  Rng rng(190);
  ContextSpec spec = Spec();
  spec.replicas = 2;
  const Filled context(service, spec, rng);
  const auto check = [&](ContextId id, int64_t kv_len) {
    for (const char* word : kWords) {
      CheckSelect(service, context, id, Ask(word, 2, rng), kv_len);
    }
  };
  check(context.id, kTokens);
  const auto fork = service.Call(ForkRequest{context.id, 500}, CallContext());
  REQUIRE(fork.ok());
  CHECK(fork->tokens == std::vector<int64_t>{500, 500, 0, 0, 500, 0});
  check(fork->id, 500);
  const auto cut = service.Call(TruncateRequest{fork->id, 300}, CallContext());
  REQUIRE(cut.ok());
  CHECK(cut->tokens[static_cast<size_t>(context.index)] == 300);
  const auto again =
      service.Call(AppendOf(fork->id, context.index, context.rows, 300, 200), CallContext());
  REQUIRE(again.ok());
  check(fork->id, 500);
  cluster.Kill(1);
  check(context.id, kTokens);
  test::AwaitWhole(service, context.id);
  check(context.id, kTokens);
  check(fork->id, 480);
}

TEST_CASE("what a track cannot be, and what it is no use for, is refused by name") {
  LocalCluster cluster({.workers = 2});
  Service& service = cluster.service();
  Rng rng(191);
  const auto refused = [](const absl::Status& status, absl::string_view why) {
    INFO(status);
    CHECK(absl::IsInvalidArgument(status));
    CHECK(absl::StrContains(status.message(), why));
  };
  const auto create = [&](const ContextSpec& spec) {
    return service.Call(spec, CallContext()).status();
  };
  ContextSpec spec = Spec();
  spec.tracks[1].name = "other";
  refused(create(spec), "tracks[1].name: that of tracks[0]");
  spec = Spec();
  spec.tracks[0].dim = 12;
  refused(create(spec), "tracks[0].dim: 12; expected");
  spec = Spec();
  spec.layers = 342;
  refused(create(spec), "tracks: 2; expected at most 1024 layers");
  spec = Spec();
  spec.kv_efficient = true;
  spec.patterns = {"s2(64,1,4)"};
  refused(create(spec), "tracks: 2; expected none with kv_efficient");

  const Filled context(service, Spec(), rng);
  const auto append = [&](int layer, const TensorView& rows) {
    return service.Call(AppendOf(context.id, layer, rows, kTokens, 1), CallContext()).status();
  };
  refused(append(context.index, context.kv.k), "shape of k");
  refused(append(TrackLayer(context.spec, 2, 0), context.rows), "layer: 6; expected 0 to 5");
  const Tensor q = RandomTensor(1, 1, kIndexDim, rng);
  AttendRequest attend{.context = context.id, .layer = context.index, .q_start = 9, .kv_len = 9};
  attend.q = q;
  refused(service.Call(attend, CallContext()).status(), "layer: 4, a track's; expected 0 to 1");
  attend.layer = 0;
  attend.q = context.kv.k.view().Tokens(0, 1);
  attend.pattern = "dsa(4)";
  const Tensor q4 = RandomTensor(1, 4, 16, rng);
  attend.q = q4;
  refused(service.Call(attend, CallContext()).status(),
          "pattern: dsa(4) chooses by the rows of a track; expected its index queries (index)");
  Asked asked = Ask("dsa(4)", 1, rng);
  asked.weights.pop_back();
  const auto select = [&] {
    return service.Call(RequestOf(context, context.id, asked, kTokens), CallContext()).status();
  };
  refused(select(), "weights: 2; expected 3 for dsa(4)");
  asked.weights = {1, 2, INFINITY};
  refused(select(), "weights[2]: not finite; expected");
  asked = Ask("msa(64,2)", 1, rng);
  asked.q = RandomTensor(1, 3, kIndexDim, rng);
  refused(select(), "heads of q: 3; expected 2 index queries for msa(64,2)");
  asked.word = "quest(64)";
  refused(select(), "pattern: no word chooses keys by the rows of a track");
}

}  // namespace
}  // namespace annulus
