// Tracks of several heads, with a row for several tokens, in the service: gate keys by which
// queries choose blocks, whatever the cluster does.
#include <algorithm>

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

using test::LayerKv;
using test::LocalCluster;
using test::RandomTensor;
using test::tracks::AppendOf;
using test::tracks::MakeTies;

// Rows of 8 tokens, of which there are more than a page.
constexpr int64_t kTokens = 600, kRatio = 8, kRows = kTokens / kRatio;
constexpr int kGateDim = 24;
const char* const kWords[] = {"seer(64,8)", "seer(threshold=0.02,block=8)", "seer(8,8)"};

struct Filled {
  Filled(Service& service, ContextSpec of, Rng& rng, bool ties = false) : spec(std::move(of)) {
    spec.tracks = {
        {"other", 8, DType::kF16},
        {.name = "gates", .dim = kGateDim, .dtype = DType::kF32, .heads = 2, .ratio = kRatio}};
    kv = LayerKv(spec, kTokens + 16, rng);
    rows = RandomTensor(kRows + 2, 2, kGateDim, rng);
    if (ties) MakeTies(&rows);
    id = service.Call(spec, CallContext()).value().id;
    CHECK(service.Call(kv.Append(id, 0, 0, kTokens), CallContext()).ok());
    CHECK(service.Call(AppendOf(id, gates, rows, 0, 30), CallContext()).ok());
    const auto appended = service.Call(AppendOf(id, gates, rows, 30, kRows - 30), CallContext());
    INFO(appended.status());
    CHECK(appended.ok());
  }

  ContextSpec spec;
  LayerKv kv;
  Tensor rows;
  ContextId id = 0;
  int gates = TrackLayer(spec, 1, 0);
};

Tensor GateQueries(int64_t tokens, Rng& rng, bool ties = false) {
  Tensor q = RandomTensor(tokens, 2, kGateDim, rng);
  if (ties) MakeTies(&q);
  return q;
}

void CheckSelect(Service& service, const Filled& context, ContextId id, const std::string& word,
                 const Tensor& q, int64_t kv_len) {
  const SelectRequest request{.context = id,
                              .layer = context.gates,
                              .q_start = kv_len - q.tokens(),
                              .kv_len = kv_len,
                              .q = q,
                              .pattern = word};
  absl::StatusOr<SelectResult> chosen;
  for (int i = 0; i < 200; ++i) {  // a context that goes on elsewhere is away for a moment
    chosen = service.Call(request, CallContext());
    if (!absl::IsUnavailable(chosen.status())) break;
    absl::SleepFor(absl::Milliseconds(50));
  }
  INFO(chosen.status());
  REQUIRE(chosen.ok());
  REQUIRE(chosen->lists.size() == 1);
  const CallList expected = test::ReferenceList(word, q, request.q_start, context.rows, kv_len);
  CHECK(chosen->lists[0].name == word);
  CHECK(chosen->lists[0].data->heads == 2);
  CHECK(chosen->lists[0].data->block_tokens == kRatio);
  CHECK(chosen->lists[0].data->begin == expected.data->begin);
  CHECK(chosen->lists[0].data->keys == expected.data->keys);
}

TEST_CASE("gates choose the reference's blocks at every number of workers, ties included") {
  const int world = GENERATE(1, 2, 3, 4, 7);
  LocalCluster cluster({.workers = world});
  Service& service = cluster.service();
  Rng rng(static_cast<uint64_t>(world) + 270);
  for (const Placement placement : {Placement::kTokens, Placement::kHeads, Placement::kMesh}) {
    const bool ties = placement == Placement::kHeads;
    ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
    spec.placement = placement;
    spec.partition.unit_blocks = 4;
    const Filled context(service, spec, rng, ties);
    for (const char* word : kWords) {
      CAPTURE(world, static_cast<int>(placement), word);
      const Tensor gate_q = GateQueries(70, rng, ties);
      CheckSelect(service, context, context.id, word, gate_q, kTokens);
      CheckSelect(service, context, context.id, word, gate_q, kTokens - 93);
      CheckSelect(service, context, context.id, word, GateQueries(3, rng), 7);  // no whole row
      const Tensor q = RandomTensor(70, 4, 16, rng);
      AttendRequest attend{.context = context.id, .kv_len = kTokens, .q = q};
      attend.q_start = kTokens - q.tokens();
      attend.pattern = std::string("causal & sink(3) | ") + word;
      attend.index = {.layer = context.gates, .q = gate_q};
      const auto answer = service.Call(attend, CallContext());
      INFO(answer.status());
      REQUIRE(answer.ok());
      const std::vector<CallList> lists = {
          test::ReferenceList(word, gate_q, attend.q_start, context.rows, kTokens)};
      const Partial oracle =
          test::Oracle(context.spec, context.kv, q, kTokens, attend.pattern, {}, {}, lists);
      CHECK(test::WorstError(answer->out, answer->lse, oracle) < 1e-6);
    }
  }
}

TEST_CASE("a step chooses by gate keys of whole blocks, which are appended once they are whole") {
  LocalCluster cluster({.workers = 3});
  Service& service = cluster.service();
  Rng rng(280);
  const Filled context(service, test::SmallF32Spec(), rng);
  for (int64_t at = kTokens; at < kTokens + 12; ++at) {
    const std::string word = kWords[at % 3];
    const Tensor q = RandomTensor(1, 4, 16, rng), gate_q = GateQueries(1, rng);
    StepRequest step{.context = context.id, .start = at, .q = q, .pattern = word};
    step.k = context.kv.k.view().Tokens(at, 1);
    step.v = context.kv.v.view().Tokens(at, 1);
    step.index = {.layer = context.gates, .q = gate_q};
    if ((at + 1) % kRatio == 0) {
      const absl::Status early = test::Step(service, {&step, 1})[0].status();
      CHECK(absl::StrContains(early.message(), "index: kv_len: 608; expected 1 to 607"));
      const AppendRequest row = AppendOf(context.id, context.gates, context.rows, at / kRatio, 1);
      REQUIRE(service.Call(row, CallContext()).ok());
    }
    const StepResults results = test::Step(service, {&step, 1});
    INFO(results[0].status());
    REQUIRE(results[0].ok());
    const std::vector<CallList> lists = {
        test::ReferenceList(word, gate_q, at, context.rows, at + 1)};
    const Partial oracle = test::Oracle(context.spec, context.kv, q, at + 1, word, {}, {}, lists);
    CHECK(test::WorstError(results[0]->out, results[0]->lse, oracle) < 1e-6);
  }
}

TEST_CASE("gate keys are forked, truncated, kept by copies and moved with their context") {
  LocalCluster cluster({.workers = 5, .fake_device = GENERATE(false, true)});
  Service& service = cluster.service();
  Rng rng(290);
  ContextSpec spec = test::SmallF32Spec();
  spec.replicas = 2;
  spec.partition.unit_blocks = 1;
  const Filled context(service, spec, rng);
  const auto check = [&](ContextId id, int64_t kv_len) {
    for (const char* word : kWords) {
      CheckSelect(service, context, id, word, GateQueries(2, rng), kv_len);
    }
  };
  check(context.id, kTokens);
  const auto fork = service.Call(ForkRequest{context.id, 500}, CallContext());
  REQUIRE(fork.ok());
  CHECK(fork->tokens == std::vector<int64_t>{500, 0, 62});
  check(fork->id, 500);
  const auto cut = service.Call(TruncateRequest{fork->id, 303}, CallContext());
  REQUIRE(cut.ok());
  CHECK(cut->tokens == std::vector<int64_t>{303, 0, 37});
  check(fork->id, 303);
  const AppendRequest more = AppendOf(fork->id, context.gates, context.rows, 37, 25);
  REQUIRE(service.Call(more, CallContext()).ok());
  check(fork->id, 500);
  cluster.Kill(1);
  check(context.id, kTokens);
  test::AwaitWhole(service, context.id);
  check(context.id, kTokens);
  check(fork->id, 480);
}

TEST_CASE("tracks of other heads and ratios than a word's are refused by both") {
  LocalCluster cluster({.workers = 2});
  Service& service = cluster.service();
  Rng rng(291);
  const Filled context(service, test::SmallF32Spec(), rng);
  const Tensor q = GateQueries(1, rng);
  SelectRequest select{.context = context.id, .layer = context.gates, .q_start = 9, .kv_len = 10};
  select.q = q;
  const auto refused = [&](const std::string& word, absl::string_view why) {
    select.pattern = word;
    const absl::Status status = service.Call(select, CallContext()).status();
    INFO(status);
    CHECK(absl::IsInvalidArgument(status));
    CHECK(absl::StrContains(status.message(), why));
  };
  refused("seer(640)",
          "seer(640,64): a track of heads 2 and ratio 8; expected heads 2 and ratio 64");
  refused("msa(8,3)", "msa(8,3): a track of heads 2 and ratio 8; expected heads 1 and ratio 1");
  refused("seer(block=8)", "neither; expected either budget or threshold");
  refused("seer(9,8,threshold=0.5)", "both; expected either budget or threshold");
  select.kv_len = 700;
  refused("seer(64,8)", "kv_len: 700; expected 1 to 607");
  ContextSpec spec = context.spec;
  spec.tracks[1].ratio = (1 << 20) + 1;
  CHECK(absl::StrContains(service.Call(spec, CallContext()).status().message(),
                          "tracks[1].ratio: 1048577; expected"));
  spec.tracks[1].ratio = 0;
  CHECK(absl::IsInvalidArgument(service.Call(spec, CallContext()).status()));
}

}  // namespace
}  // namespace annulus
