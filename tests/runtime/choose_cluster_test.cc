// Keys chosen by data of a context that one worker holds alone: it chooses and attends in one trip,
// what several trips choose and answer, bit for bit.
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "attention/has_list.h"
#include "base/rng.h"
#include "runtime/engine/selection.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"
#include "tests/runtime/one_worker.h"

namespace annulus {
namespace {

using test::LayerKv;
using test::LocalCluster;

constexpr int64_t kTokens = 600;
constexpr const char* kPatterns[] = {
    "moba(64,3)",
    "causal & (sink(4) | window(20) | quest(96))",
    "heads(0: moba(128,2); 1: quest(192,64)) | window(3)",
    // The keys nearest to a query are none of the few that these let it choose from.
    "quest(64) & sink(100)",
    "moba(64,3) & sink(233)",
    "causal & (window(8) | quest(64) & sink(300))",
};

struct Filled {
  Filled(Service& service, Rng& rng, DType dtype = DType::kF32, std::string pattern = "causal",
         bool large = false)
      : spec(test::SmallF32Spec()) {
    spec.dtype = dtype;
    spec.patterns = {std::move(pattern)};
    kv = LayerKv(spec, kTokens + 16, rng);
    // Of one block, which queries can score beyond f32.
    for (int64_t i = 64 * 32; large && i < 128 * 32; ++i) kv.k.f32()[i] = 4;
    id = service.Call(spec, CallContext()).value().id;
    CHECK(service.Call(kv.Append(id, 0, 0, kTokens), CallContext()).ok());
  }
  StepRequest Step(int64_t at, const TensorView& q) const { return kv.Step(id, 0, at, q); }

  ContextSpec spec;
  LayerKv kv;
  ContextId id = 0;
};

// Works of queries that the worker has done.
uint64_t Trips(LocalCluster& cluster) {
  const WorkerSnapshot seen = cluster.worker(0).Snapshot();
  return seen.attends + seen.steps;
}

bool Same(const Tensor& a, const Tensor& b) {
  return a.size_bytes() == b.size_bytes() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

// The answer in two trips: a Select, and an Attend with its lists.
AttendResult InTwoTrips(Service& service, AttendRequest request) {
  SelectRequest select{.context = request.context,
                       .q_start = request.q_start,
                       .kv_len = request.kv_len,
                       .q = request.q,
                       .pattern = request.pattern};
  auto chosen = service.Call(select, CallContext());
  INFO(chosen.status());
  REQUIRE(chosen.ok());
  for (CallList& list : chosen->lists) {
    if (!HasList(request.lists, list.name)) request.lists.push_back(std::move(list));
  }
  auto answer = service.Call(request, CallContext());
  INFO(answer.status());
  REQUIRE(answer.ok());
  return *std::move(answer);
}

// What one trip tells of its work: what two do; not the plan's kind, made where the keys that stand
// for the chosen ones meet nothing; or of those keys, since a backend chose.
enum class Told { kAll, kNotPlan, kStandIns };

void CheckOneTrip(LocalCluster& cluster, const AttendRequest& request, Told told = Told::kAll) {
  const uint64_t before = Trips(cluster);
  const auto answer = cluster.service().Call(request, CallContext());
  INFO(answer.status());
  REQUIRE(answer.ok());
  CHECK(Trips(cluster) == before + 1);
  const AttendResult expected = InTwoTrips(cluster.service(), request);
  CHECK(Same(answer->out, expected.out));
  CHECK(Same(answer->lse, expected.lse));
  CHECK(answer->stats.planned_bytes == answer->stats.bytes_moved);
  CHECK(answer->stats.visited_pairs == expected.stats.visited_pairs);
  if (told != Told::kStandIns) CHECK(answer->stats.work_pairs == expected.stats.work_pairs);
  if (told == Told::kNotPlan) return;
  CHECK(Trips(cluster) == before + 3);
  CHECK(answer->stats.plan == expected.stats.plan);
  CHECK(answer->stats.planned_bytes == expected.stats.planned_bytes);
  CHECK(answer->stats.bytes_moved == expected.stats.bytes_moved);
}

Told ToldOf(absl::string_view pattern) {
  return absl::StrContains(pattern, "&") ? Told::kNotPlan : Told::kAll;
}

TEST_CASE("a worker that holds a context alone chooses and attends in one trip, bit for bit") {
  const std::string backend = GENERATE("reference", "cpu");
  const DType dtype = backend == "cpu" ? DType::kBF16 : DType::kF32;
  LocalCluster cluster({.backend = backend, .fake_device = backend == "cpu"});
  Rng rng(120);
  const Filled context(cluster.service(), rng, dtype);
  for (const char* pattern : kPatterns) {
    for (const int64_t rows : {1, 70, 600}) {
      if (backend == "reference" && rows > 1) continue;
      CAPTURE(backend, pattern, rows);
      const Tensor q = test::RandomTensor(rows, 4, 16, rng);
      AttendRequest request{
          .context = context.id, .q_start = kTokens - rows, .kv_len = kTokens, .q = q};
      request.pattern = pattern;
      CheckOneTrip(cluster, request, ToldOf(pattern));
      request.plan = PlanKind::kGroupCast;
      CheckOneTrip(cluster, request, ToldOf(pattern));
    }
    // Queries before the last keys, which see some of the keys alone.
    const Tensor q = test::RandomTensor(40, 4, 16, rng);
    AttendRequest request{.context = context.id, .q_start = 500, .kv_len = kTokens - 7, .q = q};
    request.pattern = pattern;
    request.keys_begin = 70;
    request.keys_end = 530;
    CheckOneTrip(cluster, request, Told::kNotPlan);
  }
}

TEST_CASE(
    "a list that is given counts beside what the worker chooses, and other words take trips") {
  LocalCluster cluster({});
  Rng rng(121);
  const Filled context(cluster.service(), rng);
  const Tensor q = test::RandomTensor(3, 4, 16, rng);
  AttendRequest request{.context = context.id, .q_start = 590, .kv_len = kTokens, .q = q};
  request.pattern = "heads(0: moba(128,2); 1: quest(192,64)) | list(more) & causal";
  KeyListData all{.begin = {0, 2}, .keys = {1, 7}};
  KeyListData own{.begin = {0, 1}, .keys = {3}};
  const auto shared = [](KeyListData data) {
    return std::make_shared<const KeyListData>(std::move(data));
  };
  request.lists = {{"more", shared(all), NewListHandle()}, {"moba(128,2)", shared(own)}};
  CheckOneTrip(cluster, request);
  CheckOneTrip(cluster, request);  // one of the lists is kept
  const auto trips = [&](const char* pattern) {
    request.pattern = pattern;
    request.lists.clear();
    const uint64_t before = Trips(cluster);
    const auto answer = cluster.service().Call(request, CallContext());
    INFO(answer.status());
    CHECK(answer.ok());
    return Trips(cluster) - before;
  };
  CHECK(trips("quest(64)") == 1);
  CHECK(trips("nsa(3)") == 2);
  CHECK(trips("quest(64) | nsa(3)") == 2);
  CHECK(trips("window(9)") == 1);
}

TEST_CASE("steps append, choose and attend in one trip, beside others") {
  LocalCluster cluster({.backend = "cpu"});
  LocalCluster others({.workers = 3, .backend = "cpu"});
  Rng rng(122), same(122);
  std::vector<Filled> contexts, elsewhere;
  for (const char* pattern : {"causal", kPatterns[0], kPatterns[1], kPatterns[2]}) {
    contexts.emplace_back(cluster.service(), rng, DType::kF32, pattern);
    elsewhere.emplace_back(others.service(), same, DType::kF32, pattern);
  }
  for (int64_t at = kTokens; at < kTokens + 3; ++at) {
    std::vector<Tensor> q;
    std::vector<StepRequest> steps, steps_elsewhere;
    for (size_t i = 0; i < contexts.size(); ++i) {
      q.push_back(test::RandomTensor(1, 4, 16, rng));
      steps.push_back(contexts[i].Step(at, q[i]));
      steps.back().key = {.client = 3, .sequence = static_cast<uint64_t>(at) * 10 + i};
      steps_elsewhere.push_back(elsewhere[i].Step(at, q[i]));
    }
    const StepResults there = test::Step(others.service(), steps_elsewhere);
    for (int again = 0; again < 2; ++again) {
      const uint64_t before = Trips(cluster);
      const StepResults results = test::Step(cluster.service(), steps);
      CHECK(Trips(cluster) == before + 1);
      for (size_t i = 0; i < contexts.size(); ++i) {
        CAPTURE(at, again, i);
        INFO(results[i].status());
        REQUIRE(results[i].ok());
        REQUIRE(there[i].ok());
        CHECK(results[i]->tokens == at + 1);
        for (int64_t c = 0; c < there[i]->out.view().size(); ++c) {
          REQUIRE(std::abs(results[i]->out.f32()[c] - there[i]->out.f32()[c]) < 2e-6);
        }
        if (i == 0) continue;
        AttendRequest request{.context = contexts[i].id, .q_start = at, .kv_len = at + 1};
        request.q = q[i];
        const AttendResult expected = InTwoTrips(cluster.service(), request);
        CHECK(Same(results[i]->out, expected.out));
        CHECK(Same(results[i]->lse, expected.lse));
      }
    }
  }
}

TEST_CASE("a choice that fails in one trip is told in the same words, and its append is undone") {
  LocalCluster cluster({.limits = {.in_flight_bytes_max = 340 << 10}});
  Service& service = cluster.service();
  Rng rng(123);
  const Filled context(service, rng, DType::kF32, "causal", /*large=*/true);
  Tensor q = test::RandomTensor(1, 4, 16, rng);
  for (int c = 0; c < 16; ++c) q.f32()[2 * 16 + c] = 3e38f;  // head 2
  StepRequest step = context.Step(kTokens, q);
  step.pattern = "moba(64,3)";
  const absl::Status refused = test::Step(service, {&step, 1})[0].status();
  INFO(refused);
  CHECK(absl::IsInvalidArgument(refused));
  CHECK(absl::StrContains(
      refused.message(),
      "pattern: moba(64,3): row 0, head 2 scores a unit beyond what f32 holds; expected finite"));
  q = test::RandomTensor(1, 4, 16, rng);
  step.q = q;
  const StepResults after = test::Step(service, {&step, 1});
  INFO(after[0].status());
  REQUIRE(after[0].ok());
  CHECK(after[0]->tokens == kTokens + 1);
  // What the worker chooses from counts, as its answer would.
  q = test::RandomTensor(400, 4, 16, rng);
  AttendRequest request{.context = context.id, .q_start = 200, .kv_len = kTokens, .q = q};
  request.pattern = "window(9)";
  CHECK(service.Call(request, CallContext()).ok());
  request.pattern = "quest(304)";
  const absl::Status too_much = service.Call(request, CallContext()).status();
  INFO(too_much);
  CHECK(absl::StrContains(too_much.message(), "in_flight_bytes_max"));
}

TEST_CASE("a worker believes no coordinator that asks it to choose what it cannot") {
  const ContextSpec spec = test::SmallF32Spec();
  test::OneWorker one(spec);
  REQUIRE(one.store.Open(2, spec, 2, 0).ok());
  Rng rng(125);
  const LayerKv kv(spec, 64, rng);
  const Tensor q = test::RandomTensor(64, 4, 16, rng);
  const AppendRequest append = kv.Append(1, 0, 0, 64);
  StepRequest step{.context = 1, .k = append.k, .v = append.v, .q = q, .pattern = "moba(64,3)"};
  BatchCall call({CallItem(step)}, CallContext(), one.planner, Clock::Real());
  (void)call.request();
  const WorkerTask task = test::OneWorker::TaskOf(call.Prepare(one.Admit(true, true)).value());
  const auto run = [&](auto change) {
    WorkerTask changed = task;
    wire::WorkItem& item = std::get<wire::Work>(changed.body).items.at(0);
    REQUIRE(item.chooses);
    change(item);
    const Message answer = std::move(one.runner.Run(changed).messages.at(0));
    return std::get<wire::WorkDone>(wire::Decode(answer).value()).items.at(0).status;
  };
  CHECK(absl::StrContains(run([](wire::WorkItem& item) { item.storage_id = 2; }).message(),
                          "chooses: set; expected a context of one rank, not of 2"));
  CHECK(
      absl::StrContains(run([](wire::WorkItem& item) { item.pattern = "nsa(3)"; }).message(),
                        "chooses: nsa(3,64); expected its list, or a word that chooses by units"));
  CHECK(absl::IsInvalidArgument(run([](wire::WorkItem& item) { item.pattern = "list(x)"; })));
  CHECK(absl::IsDataLoss(run([](wire::WorkItem& item) { item.query_bytes -= 64; })));
  CHECK(absl::IsDataLoss(run([](wire::WorkItem& item) { item.q_tokens = 65; })));
  CHECK(run([](wire::WorkItem&) {}).ok());
}

// Chooses for patterns that are one word alone.
class ChoosingBackend final : public Backend {
 public:
  explicit ChoosingBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  const BackendCapabilities& capabilities() const override { return inner_->capabilities(); }
  bool Chooses(const AttendArgs& args) const override {
    return args.pattern->selectors().size() == 1 && args.pattern->lists().empty() &&
           args.pattern->text() == args.pattern->selectors()[0]->name();
  }
  absl::Status AttendBatch(absl::Span<const AttendArgs> batch) override {
    for (AttendArgs args : batch) {
      std::optional<Pattern> bound;
      if (Chooses(args)) {
        ++chosen;
        ANNULUS_ASSIGN_OR_RETURN(bound, Bound(args));
        args.pattern = &*bound;
      }
      ANNULUS_RETURN_IF_ERROR(inner_->Attend(args));
    }
    return absl::OkStatus();
  }

  static std::atomic<int> chosen;

 private:
  static absl::StatusOr<Pattern> Bound(const AttendArgs& args) {
    const Selector& word = *args.pattern->selectors()[0];
    const Layout layout = Layout::Tokens(1, args.heads.count, args.heads.count / args.group, {},
                                         BlocksOf(args.kv_tokens));
    const Selection selection({.selector = &word,
                               .q = args.q,
                               .q_begin = args.q_ranges[0].begin,
                               .heads = args.heads,
                               .group = args.group,
                               .kv_tokens = args.kv_tokens},
                              layout);
    Selection::Merge merge(selection, args.q, args.kv->dtype());
    ANNULUS_ASSIGN_OR_RETURN(const Buffer answer,
                             selection.Answer(0, {&args.q, 1}, {.kv = args.kv}, {}));
    ANNULUS_RETURN_IF_ERROR(merge.Add(0, answer.span()));
    ANNULUS_ASSIGN_OR_RETURN(KeyListData data, std::move(merge).Finish());
    ANNULUS_ASSIGN_OR_RETURN(auto list, KeyList::Make(std::move(data)));
    const NamedList named{word.name(), std::move(list)};
    return args.pattern->Bind({&named, 1}, args.heads.count);
  }

  const std::unique_ptr<Backend> inner_;
};
std::atomic<int> ChoosingBackend::chosen = 0;

TEST_CASE("a backend that chooses is given queries and no lists, where it may") {
  LocalCluster cluster({.backend = "cpu", .wrap = [](std::unique_ptr<Backend> inner) {
                          return std::make_unique<ChoosingBackend>(std::move(inner));
                        }});
  Rng rng(124);
  const Filled context(cluster.service(), rng, DType::kF32, "moba(64,3)");
  const Tensor q = test::RandomTensor(33, 4, 16, rng);
  const auto choices = [&](const AttendRequest& request) {
    const int before = ChoosingBackend::chosen;
    CheckOneTrip(cluster, request, Told::kStandIns);
    return ChoosingBackend::chosen - before;
  };
  AttendRequest request{.context = context.id, .q_start = 560, .kv_len = kTokens, .q = q};
  CHECK(choices(request) == 1);
  request.pattern = "quest(64,16)";
  CHECK(choices(request) == 1);
  request.pattern = "quest(64,16) | window(9)";
  CHECK(choices(request) == 0);
  request.pattern = "moba(64,4)";
  request.keys_end = 580;
  CHECK(choices(request) == 0);
  request.keys_end = {};
  StepRequest step = context.Step(kTokens, request.q.Tokens(0, 1));
  const int before = ChoosingBackend::chosen;
  const StepResults stepped = test::Step(cluster.service(), {&step, 1});
  REQUIRE(stepped[0].ok());
  CHECK(ChoosingBackend::chosen == before + 1);
}

}  // namespace
}  // namespace annulus
