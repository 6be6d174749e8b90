// Words of an index in Attend and Step: calls that bring index queries see what Select would
// choose.
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/rng.h"
#include "tests/attention/reference_lists.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"
#include "tests/runtime/track_inputs.h"

namespace annulus {
namespace {

using namespace test::tracks;
using test::LocalCluster;
using test::RandomTensor;

const char* const kWords[] = {"dsa(50)", "msa(64,3)", "msa(128,2)"};

IndexQueries IndexOf(const Filled& context, const Asked& asked) {
  return {.layer = context.index, .q = asked.q, .weights = asked.weights};
}

// Of the word of an index, and of the one that looks at keys, both before `kv_len`.
std::vector<CallList> ListsOf(const Filled& context, const Asked& asked, const TensorView& q,
                              int64_t kv_len, const std::string& by_keys = {}) {
  const int64_t q_start = kv_len - q.tokens;
  std::vector<CallList> lists = {
      test::ReferenceList(asked.word, asked.q, q_start, context.rows, kv_len, asked.weights)};
  if (!by_keys.empty()) {
    lists.push_back(test::ReferenceList(by_keys, q, q_start, context.kv.k, kv_len));
  }
  return lists;
}

template <typename Result>
void CheckAnswer(const absl::StatusOr<Result>& answer, const Filled& context, const TensorView& q,
                 int64_t kv_len, const std::string& pattern, const std::vector<CallList>& lists,
                 double tolerance = 1e-6) {
  INFO(answer.status());
  REQUIRE(answer.ok());
  const Partial oracle = test::Oracle(context.spec, context.kv, q, kv_len, pattern, {}, {}, lists);
  CHECK(test::WorstError(answer->out, answer->lse, oracle) < tolerance);
}

TEST_CASE("an Attend that brings index queries sees the reference's keys, ties and bf16 too") {
  const int world = GENERATE(1, 2, 3, 4, 7);
  LocalCluster cluster({.workers = world});
  Service& service = cluster.service();
  Rng rng(static_cast<uint64_t>(world) + 270);
  for (const Placement placement : {Placement::kTokens, Placement::kHeads, Placement::kMesh}) {
    for (const bool ties : {false, true}) {
      ContextSpec spec = Spec();
      spec.placement = placement;
      const Filled context(service, spec, rng, ties);
      for (const char* word : kWords) {
        const Asked asked = Ask(word, rng.Below(2) == 0 ? 1 : 70, rng, ties);
        CAPTURE(world, static_cast<int>(placement), ties, word, asked.q.tokens());
        const Tensor q = RandomTensor(asked.q.tokens(), 4, 16, rng);
        const std::string by_keys = asked.q.tokens() == 1 ? "quest(96,16)" : "";
        AttendRequest attend{.context = context.id, .layer = 0, .kv_len = kTokens - 3, .q = q};
        attend.q_start = attend.kv_len - q.tokens();
        attend.pattern = absl::StrCat("causal & sink(3) | ", word);
        if (!by_keys.empty()) attend.pattern += " | quest(96)";
        attend.index = IndexOf(context, asked);
        const auto lists = ListsOf(context, asked, q, attend.kv_len, by_keys);
        CheckAnswer(service.Call(attend, CallContext()), context, q, attend.kv_len, attend.pattern,
                    lists);
      }
    }
  }
  ContextSpec spec = Spec();
  spec.dtype = DType::kBF16;
  const Filled context(service, spec, rng);
  const Asked asked = Ask("dsa(50)", 9, rng);
  const Tensor q = RandomTensor(9, 4, 16, rng);
  AttendRequest attend{.context = context.id, .layer = 1, .kv_len = kTokens, .q = q};
  attend.q_start = kTokens - 9;
  attend.pattern = "dsa(50)";
  attend.index = IndexOf(context, asked);  // of layer 0: IndexShare
  CheckAnswer(service.Call(attend, CallContext()), context, q, kTokens, "dsa(50)",
              ListsOf(context, asked, q, kTokens), 2.0 / 256);
}

// A step of a layer and one of its track's rows, in either order.
struct TokenOf {
  TokenOf(const Filled& context, int64_t at, const Asked& asked, const TensorView& q,
          bool track_first) {
    StepRequest layer, track;
    layer.context = track.context = context.id;
    layer.start = track.start = at;
    layer.k = context.kv.k.view().Tokens(at, q.tokens);
    layer.v = context.kv.v.view().Tokens(at, q.tokens);
    layer.q = q;
    layer.pattern = asked.word;
    layer.index = IndexOf(context, asked);
    layer.key = {.client = 9, .sequence = static_cast<uint64_t>(2 * at)};
    track.layer = context.index;
    track.k = context.rows.view().Tokens(at, q.tokens);
    track.key = {.client = 9, .sequence = static_cast<uint64_t>(2 * at + 1)};
    attends = track_first ? 1 : 0;
    steps.resize(2);
    steps[attends] = layer;
    steps[1 - attends] = track;
  }

  std::vector<StepRequest> steps;
  size_t attends;
};

TEST_CASE(
    "a step chooses by rows that come in the same call, or came before it, and again by key") {
  const int world = GENERATE(1, 3, 6);
  LocalCluster cluster({.workers = world});
  Service& service = cluster.service();
  Rng rng(static_cast<uint64_t>(world) + 280);
  std::vector<Filled> contexts;
  contexts.emplace_back(service, Spec(DType::kBF16), rng);  // whose rows are exact in it
  contexts.emplace_back(service, Spec(), rng, /*ties=*/true);
  int64_t at = kTokens;
  for (int round = 0; round < 4; ++round) {
    const int64_t tokens = round == 3 ? 2 : 1;
    std::vector<Tensor> q;
    std::vector<Asked> asked;
    std::vector<StepRequest> steps;
    std::vector<size_t> attends;
    for (size_t i = 0; i < contexts.size(); ++i) {
      q.push_back(RandomTensor(tokens, 4, 16, rng));
      asked.push_back(Ask(kWords[round % 3], tokens, rng));
    }
    for (size_t i = 0; i < contexts.size(); ++i) {
      const TokenOf token(contexts[i], at, asked[i], q[i], (round + i) % 2 == 0);
      attends.push_back(steps.size() + token.attends);
      steps.insert(steps.end(), token.steps.begin(), token.steps.end());
    }
    for (int again = 0; again < 2; ++again) {
      CAPTURE(world, round, again);
      const StepResults results = test::Step(service, steps);
      for (size_t i = 0; i < contexts.size(); ++i) {
        CheckAnswer(results[attends[i]], contexts[i], q[i], at + tokens, asked[i].word,
                    ListsOf(contexts[i], asked[i], q[i], at + tokens));
        CHECK(results[attends[i]]->tokens == at + tokens);
        const auto& track = results[attends[i] ^ 1];
        REQUIRE(track.ok());
        CHECK(track->tokens == at + tokens);
        CHECK(track->out.tokens() == 0);
      }
    }
    at += tokens;
  }
  // A step that appends nothing, by rows that are there.
  const Asked last = Ask("dsa(50)", 1, rng);
  const Tensor q = RandomTensor(1, 4, 16, rng);
  StepRequest step;
  step.context = contexts[0].id;
  step.start = at;
  step.q = q;
  step.pattern = "dsa(50) & causal";
  step.index = IndexOf(contexts[0], last);
  CheckAnswer(test::Step(service, {&step, 1})[0], contexts[0], q, at, step.pattern,
              ListsOf(contexts[0], last, q, at));
}

TEST_CASE("a context's own pattern may be that of an index, which forks and a lost worker keep") {
  LocalCluster cluster({.workers = 4});
  Service& service = cluster.service();
  Rng rng(290);
  ContextSpec spec = Spec();
  spec.replicas = 2;
  spec.patterns = {"msa(64,3)"};
  const Filled context(service, spec, rng);
  const auto check = [&](ContextId id, int64_t kv_len) {
    const Asked asked = Ask("msa(64,3)", 2, rng);
    const Tensor q = RandomTensor(2, 4, 16, rng);
    AttendRequest attend{.context = id, .q_start = kv_len - 2, .kv_len = kv_len, .q = q};
    attend.index = IndexOf(context, asked);
    absl::StatusOr<AttendResult> answer;
    for (int i = 0; i < 200; ++i) {
      answer = service.Call(attend, CallContext());
      if (!absl::IsUnavailable(answer.status())) break;
      absl::SleepFor(absl::Milliseconds(50));
    }
    CheckAnswer(answer, context, q, kv_len, "msa(64,3)", ListsOf(context, asked, q, kv_len));
  };
  check(context.id, kTokens);
  const auto fork = service.Call(ForkRequest{context.id, 500}, CallContext());
  REQUIRE(fork.ok());
  check(fork->id, 500);
  cluster.Kill(1);
  check(context.id, kTokens);
  check(fork->id, 480);
}

TEST_CASE("index queries that are missing or do not fit are refused by name, and append nothing") {
  LocalCluster cluster({.workers = 2});
  Service& service = cluster.service();
  Rng rng(291);
  const Filled context(service, Spec(), rng);
  const Tensor q = RandomTensor(1, 4, 16, rng);
  const Asked dsa = Ask("dsa(4)", 1, rng), msa = Ask("msa(64,2)", 1, rng);
  const auto refused = [&](const Asked& asked, const IndexQueries& index, absl::string_view why) {
    AttendRequest attend{.context = context.id, .q_start = 9, .kv_len = 10, .q = q};
    attend.pattern = asked.word;
    attend.index = index;
    StepRequest step = TokenOf(context, kTokens, asked, q, true).steps[1];
    step.index = index;
    step.k = step.v = {};
    for (const absl::Status& status : {service.Call(attend, CallContext()).status(),
                                       test::Step(service, {&step, 1})[0].status()}) {
      INFO(status);
      CHECK(absl::IsInvalidArgument(status));
      CHECK(absl::StrContains(status.message(), why));
    }
  };
  refused(dsa, {}, "pattern: dsa(4) chooses by the rows of a track; expected its index queries");
  IndexQueries index = IndexOf(context, dsa);
  index.layer = 1;
  refused(dsa, index, "index.layer: 1; expected 2 to 5, a track's");
  index = IndexOf(context, dsa);
  index.weights.pop_back();
  refused(dsa, index, "index: weights: 2; expected 3 for dsa(4)");
  index.weights.push_back(NAN);
  refused(dsa, index, "index: weights[2]: not finite; expected");
  index = IndexOf(context, msa);
  index.q.heads = 1;
  refused(msa, index, "index: heads of q: 1; expected 2 index queries for msa(64,2)");
  index.q.dim = 16;
  refused(msa, index, "index.q");
  refused(Asked{"causal", {}, {}}, IndexOf(context, dsa),
          "index: pattern: no word chooses keys by the rows of a track; expected one");
  const Asked two = Ask("msa(64,2)", 2, rng);
  refused(msa, IndexOf(context, two), "tokens of index.q: 2; expected 1, those of q");

  // The track's rows are there for all keys, or come with the step.
  std::vector<StepRequest> steps = TokenOf(context, kTokens, dsa, q, true).steps;
  const absl::Status early = test::Step(service, {&steps[1], 1})[0].status();
  CHECK(
      early.message() ==
      "index: kv_len: 601; expected 1 to 600, the committed tokens of layer 4 (track \"index\" of "
      "layer 0)");
  steps[1].index.weights.pop_back();
  StepResults results = test::Step(service, steps);
  CHECK(results[0].ok());  // the rows have nothing to do with it
  CHECK(absl::StrContains(results[1].status().message(), "index: weights: 2; expected 3"));
  const ContextInfo info = service.Call(DescribeRequest{context.id}, CallContext()).value();
  CHECK(info.tokens == std::vector<int64_t>{600, 600, 0, 0, 601, 0});
  steps = TokenOf(context, kTokens, dsa, q, false).steps;
  steps[1].layer = 1;
  steps[1].k = steps[0].k;
  steps[1].v = steps[0].v;
  steps[1].q = q;
  steps[1].pattern = "dsa(4)";
  steps[1].index = steps[0].index;
  results = test::Step(service, steps);
  CHECK(results[0].ok());
  CHECK(absl::StrContains(results[1].status().message(), "index: a step of the same call is in"));
}

}  // namespace
}  // namespace annulus
