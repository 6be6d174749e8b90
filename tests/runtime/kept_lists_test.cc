// KeptLists alone; and over whole clusters: a list that calls name by its handle travels once, also
// past a fork and the loss of a worker.
#include "runtime/coordinator/calls/kept_lists.h"

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "base/rng.h"
#include "runtime/service/list_not_kept.h"
#include "tests/attention/random_list.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"
#include "tests/runtime/one_worker.h"

namespace annulus {
namespace {

using test::LayerKv;
using test::LocalCluster;

constexpr int64_t kTokens = 330;

std::shared_ptr<const KeyListData> DataOf(size_t keys) {
  KeyListData data;
  data.begin = {0, static_cast<int64_t>(keys)};
  for (size_t i = 0; i < keys; ++i) data.keys.push_back(static_cast<int32_t>(i));
  return std::make_shared<const KeyListData>(std::move(data));
}

class Tenant {
 public:
  Tenant(KeptLists& lists, std::string name) : lists_(lists), name_(std::move(name)) {}

  // The data that is kept; null if none is.
  std::shared_ptr<const KeyListData> Get(const ListHandle& handle,
                                         std::shared_ptr<const KeyListData> data = nullptr) {
    std::vector<CallList> lists = {{"x", std::move(data), handle}};
    gone.clear();
    const absl::Status status = lists_.Resolve(name_, &lists, &gone);
    CHECK(status.ok() != IsListNotKept(status));
    return status.ok() ? lists[0].data : nullptr;
  }

  std::vector<std::shared_ptr<const KeyListData>> gone;

 private:
  KeptLists& lists_;
  const std::string name_;
};

TEST_CASE("lists are kept for their tenant, within half of the room, the last used longest") {
  KeptLists lists(20'000, 100);
  Tenant a(lists, "a");
  Tenant b(lists, "b");
  const ListHandle handle = NewListHandle();
  CHECK(a.Get(handle) == nullptr);
  const auto kept = a.Get(handle, DataOf(1000));
  REQUIRE(kept != nullptr);
  CHECK(lists.NumberOf(*kept) == 101);
  CHECK(lists.bytes() > 4000);
  CHECK(a.Get(handle) == kept);
  CHECK(a.Get(handle, DataOf(1000)) == kept);
  CHECK(b.Get(handle) == nullptr);  // nobody sees what another tenant keeps

  const ListHandle second = NewListHandle();
  const ListHandle third = NewListHandle();
  CHECK(a.Get(second, DataOf(1000)) != nullptr);
  CHECK(a.Get(handle) == kept);
  CHECK(a.Get(third, DataOf(1000)) != nullptr);  // a third has no room beside two
  REQUIRE(a.gone.size() == 1);
  CHECK(a.Get(second) == nullptr);
  CHECK(a.Get(handle) == kept);
  CHECK(b.Get(second, DataOf(1000)) != nullptr);
  CHECK(a.Get(handle) == kept);

  const auto large = DataOf(5000);  // is used, and not kept
  CHECK(a.Get(NewListHandle(), large) == large);
  CHECK(lists.NumberOf(*large) == 0);
}

TEST_CASE("a handle with other data, and data that is no list, are refused by name") {
  KeptLists lists(20'000);
  const ListHandle handle = NewListHandle();
  std::vector<std::shared_ptr<const KeyListData>> gone;
  const auto resolve = [&](KeyListData data) {
    std::vector<CallList> call = {
        {"x", std::make_shared<const KeyListData>(std::move(data)), handle}};
    return lists.Resolve("", &call, &gone);
  };
  const absl::Status bad = resolve({.begin = {0, 2}, .keys = {9, 5}});
  CHECK(bad.code() == absl::StatusCode::kInvalidArgument);
  CHECK(absl::StartsWith(bad.message(), "list x: keys"));
  CHECK(lists.bytes() == 0);
  CHECK(resolve({.begin = {0, 2}, .keys = {5, 9}}).ok());  // what was refused is not kept
  CHECK(resolve({.begin = {0, 2}, .keys = {5, 9}}).ok());
  CHECK(resolve({.begin = {0, 2}, .keys = {50, 90}}).message() ==
        "list x: its handle came before with other data; expected a handle of its own");

  std::vector<CallList> two = {{"x", DataOf(3), NewListHandle()}, {"y", DataOf(4)}};
  two[1].handle = two[0].handle;
  CHECK(lists.Resolve("", &two, &gone).code() == absl::StatusCode::kInvalidArgument);
}

TEST_CASE("what a worker keeps is forgotten once no call has it any more") {
  KeptLists lists(10'000);
  Tenant tenant(lists, "");
  auto first = tenant.Get(NewListHandle(), DataOf(1000));
  const uint64_t number = lists.NumberOf(*first);
  CHECK_FALSE(lists.Has(7, number));
  lists.Answered(7, {number}, {});
  CHECK(lists.Has(7, number));
  CHECK_FALSE(lists.Has(8, number));
  CHECK(tenant.Get(NewListHandle(), DataOf(1000)) != nullptr);
  CHECK(lists.Has(7, number));  // a call still has it
  tenant.gone.clear();
  first = nullptr;
  CHECK_FALSE(lists.Has(7, number));
  CHECK(lists.ToForget(7) == std::vector<uint64_t>{number});
  CHECK(lists.ToForget(7) == std::vector<uint64_t>{number});  // until the worker has heard it
  CHECK(lists.ToForget(8).empty());
  lists.Answered(7, {}, {number});
  CHECK(lists.ToForget(7).empty());
}

struct ListWorker : test::OneWorker {
  explicit ListWorker(const ContextSpec& spec) : OneWorker(spec, /*list_cache_bytes=*/20'000) {}

  // What the worker was sent; the call has gone well.
  wire::Work Run(std::vector<CallItem> items) {
    BatchCall call(std::move(items), CallContext(), planner, Clock::Real());
    const bool appends = call.request().items[0].k_tokens > 0;
    const WorkerTask task = TaskOf(call.Prepare(Admit(appends, !appends)).value());
    Message answer = std::move(runner.Run(task).messages.at(0));
    const auto done = std::get<wire::WorkDone>(wire::Decode(answer).value());
    INFO(done.items.at(0).status);
    CHECK(done.items.at(0).status.ok());
    CHECK(call.OnAnswer({0, done, std::move(answer.payload)}).ok());
    return std::get<wire::Work>(task.body);
  }

  wire::Work Attend(AttendRequest request) {
    CHECK(planner.Resolve("", &request.lists).ok());
    return Run({CallItem(request)});
  }
};

TEST_CASE("a worker gets a kept list's data once, and hears when to forget it") {
  Rng rng(3);
  const ContextSpec spec = test::SmallF32Spec();
  ListWorker one(spec);
  const LayerKv kv(spec, kTokens, rng);
  one.Run({CallItem(kv.Append(1, 0, 0, kTokens))});
  const Tensor q = test::RandomTensor(4, 4, 16, rng);
  AttendRequest attend;
  attend.context = 1;
  attend.kv_len = kTokens;
  attend.q_start = kTokens - 4;
  attend.q = q;
  attend.pattern = "list(x) & list(y)";
  const CallList kept = {"x", DataOf(5), NewListHandle()};
  attend.lists = {kept, {"y", DataOf(5)}};

  const wire::Work first = one.Attend(attend);
  const uint64_t number = first.items[0].lists[0].number;
  CHECK(number != 0);
  CHECK(first.items[0].lists[0].data.has_value());
  CHECK(first.items[0].lists[1].number == 0);
  attend.lists[0].data = nullptr;
  const wire::Work second = one.Attend(attend);
  CHECK(second.items[0].lists[0].number == number);
  CHECK_FALSE(second.items[0].lists[0].data.has_value());
  CHECK(second.items[0].lists[1].data.has_value());

  for (int i = 0; i < 40; ++i) {  // no room for all: the first ones go
    attend.lists[0] = {"x", DataOf(5), NewListHandle()};
    const wire::Work work = one.Attend(attend);
    CHECK(work.items[0].lists[0].data.has_value());
    if (work.forget_lists == std::vector<uint64_t>{number}) break;
    REQUIRE(i < 39);
  }
  CHECK(one.Attend(attend).forget_lists.empty());

  one.runner.ForgetLists();  // as at another coordinator: this one knows nothing of it
  std::vector<CallList> lists = attend.lists;
  lists[0].data = nullptr;
  CHECK(one.planner.Resolve("", &lists).ok());
  attend.lists = lists;
  BatchCall call({CallItem(attend)}, CallContext(), one.planner, Clock::Real());
  const WorkerTask task = one.TaskOf(call.Prepare(one.Admit(false, true)).value());
  const Message answer = std::move(one.runner.Run(task).messages.at(0));
  const auto done = std::get<wire::WorkDone>(wire::Decode(answer).value());
  CHECK(absl::IsFailedPrecondition(done.items.at(0).status));
}

struct Filled {
  Filled(Service& service, Rng& rng, int replicas) : spec(test::SmallF32Spec()) {
    spec.replicas = replicas;
    kv = LayerKv(spec, kTokens + 8, rng);
    id = service.Call(spec, CallContext()).value().id;
    CHECK(service.Call(kv.Append(id, 0, 0, kTokens), CallContext()).ok());
  }

  // `q` attends with the list; the answer is the oracle's.
  void Check(Service& service, ContextId of, const Tensor& q, const CallList& list) const {
    AttendRequest request;
    request.context = of;
    request.q = q;
    request.kv_len = kTokens;
    request.q_start = kTokens - q.tokens();
    request.pattern = "list(x) & causal | window(2)";
    request.lists = {list};
    auto answer = service.Call(request, CallContext());
    for (int i = 0; i < 400 && absl::IsUnavailable(answer.status()); ++i) {
      absl::SleepFor(absl::Milliseconds(50));  // as clients do: it is being moved, for instance
      answer = service.Call(request, CallContext());
    }
    INFO(answer.status());
    REQUIRE(answer.ok());
    std::vector<CallList> whole = {list};
    if (list.data == nullptr) whole[0].data = data;
    const Partial oracle = test::Oracle(spec, kv, q, kTokens, request.pattern, {}, {}, whole);
    CHECK(test::WorstError(answer->out, answer->lse, oracle) < 1e-6);
  }

  ContextSpec spec;
  LayerKv kv;
  ContextId id = 0;
  std::shared_ptr<const KeyListData> data;
};

std::shared_ptr<const KeyListData> LargeList(int64_t rows) {
  KeyListData data;
  data.unit = KeyListData::Unit::kTokens;
  data.rows = KeyListData::Rows::kToken;
  data.heads = 4;
  data.q_begin = kTokens - rows;
  data.begin = {0};
  for (int head = 0; head < data.heads; ++head) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int32_t key = head; key < data.q_begin; key += 3) data.keys.push_back(key);
      data.begin.push_back(static_cast<int64_t>(data.keys.size()));
    }
  }
  return std::make_shared<const KeyListData>(std::move(data));
}

TEST_CASE("a list with a handle comes once, and serves forks and other patterns too") {
  const int world = GENERATE(1, 3);
  LocalCluster cluster({.workers = world});
  Rng rng(static_cast<uint64_t>(world));
  Filled context(cluster.service(), rng, 1);
  context.data = LargeList(60);
  const Tensor q = test::RandomTensor(60, 4, 16, rng);
  const ListHandle handle = NewListHandle();
  context.Check(cluster.service(), context.id, q, {"x", context.data, handle});
  context.Check(cluster.service(), context.id, q, {"x", nullptr, handle});
  const auto fork = cluster.service().Call(ForkRequest{context.id, {}}, CallContext());
  REQUIRE(fork.ok());
  context.Check(cluster.service(), fork->id, q, {"x", nullptr, handle});
  // The same list under another name, and with another pattern's words.
  AttendRequest request;
  request.context = context.id;
  request.q = q;
  request.kv_len = kTokens;
  request.q_start = kTokens - 60;
  request.pattern = "list(y)";
  request.lists = {{"y", nullptr, handle}};
  CHECK(cluster.service().Call(request, CallContext()).ok());
  request.lists = {{"y", nullptr, NewListHandle()}};
  const absl::Status status = cluster.service().Call(request, CallContext()).status();
  INFO(status);
  CHECK(IsListNotKept(status));
  CHECK(absl::StrContains(status.message(), "list y: its handle is not kept here"));
}

TEST_CASE("lists that are forgotten for others leave the workers too, and may come again") {
  CoordinatorLimits limits;
  limits.list_cache_bytes = 200'000;  // room for one of them
  LocalCluster cluster({.workers = 2, .limits = limits});
  Rng rng(5);
  Filled context(cluster.service(), rng, 1);
  const Tensor q = test::RandomTensor(60, 4, 16, rng);
  const ListHandle handles[] = {NewListHandle(), NewListHandle()};
  context.data = LargeList(60);
  REQUIRE(context.data->size_bytes() > 50'000);
  for (int i = 0; i < 6; ++i) {
    context.Check(cluster.service(), context.id, q, {"x", context.data, handles[i % 2]});
    context.Check(cluster.service(), context.id, q, {"x", nullptr, handles[i % 2]});
  }
}

TEST_CASE("a worker that is lost and one that joins change nothing of what a handle means") {
  LocalCluster cluster({.workers = 2});
  Rng rng(6);
  Filled context(cluster.service(), rng, 2);
  context.data = LargeList(60);
  const Tensor q = test::RandomTensor(60, 4, 16, rng);
  const ListHandle handle = NewListHandle();
  context.Check(cluster.service(), context.id, q, {"x", context.data, handle});
  cluster.AddWorker();
  cluster.Kill(0);
  context.Check(cluster.service(), context.id, q, {"x", nullptr, handle});
}

TEST_CASE("a step whose list is not kept fails alone, and appends nothing") {
  LocalCluster cluster({.workers = 2});
  Rng rng(8);
  Filled context(cluster.service(), rng, 1);
  const Filled other(cluster.service(), rng, 1);
  const Tensor q = test::RandomTensor(1, 4, 16, rng);
  const ListHandle handle = NewListHandle();
  context.data = DataOf(3);
  context.Check(cluster.service(), context.id, q, {"x", context.data, handle});
  const auto step_of = [&](const Filled& of, const ListHandle& list) {
    StepRequest step = of.kv.Step(of.id, 0, kTokens, q);
    step.pattern = "list(x) | window(3)";
    step.lists = {{"x", nullptr, list}};
    return step;
  };
  const StepRequest steps[] = {step_of(other, NewListHandle()), step_of(context, handle)};
  const StepResults results = test::Step(cluster.service(), steps);
  CHECK(IsListNotKept(results[0].status()));
  REQUIRE(results[1].ok());
  CHECK(results[1]->tokens == kTokens + 1);
  const Partial oracle = test::Oracle(context.spec, context.kv, q, kTokens + 1, steps[1].pattern,
                                      {}, {}, {{"x", context.data}});
  CHECK(test::WorstError(results[1]->out, results[1]->lse, oracle) < 1e-6);
  CHECK(cluster.service().Call(DescribeRequest{other.id}, CallContext())->tokens[0] == kTokens);
}

}  // namespace
}  // namespace annulus
