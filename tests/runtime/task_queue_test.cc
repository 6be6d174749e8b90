// Which tasks of a worker may run at once, and in which order.
#include "runtime/worker/task_queue.h"

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "base/rng.h"
#include "tests/catch.h"

namespace annulus {
namespace {

using Lane = TaskQueue::Lane;

constexpr absl::Time kNow = absl::UnixEpoch();

WorkerTask Task(wire::Body body) {
  WorkerTask task;
  task.body = std::move(body);
  task.cancel = std::make_shared<std::atomic<bool>>(false);
  return task;
}
WorkerTask Work(wire::WorkItem item) {
  wire::Work work;
  work.items.push_back(std::move(item));
  return Task(work);
}
WorkerTask Prefill(ContextId context, int layer = 0) {
  wire::WorkItem item;
  item.storage_id = context;
  item.layer = layer;
  item.q_tokens = 1024;
  return Work(item);
}
WorkerTask Step(ContextId context, int layer = 0, int64_t k_tokens = 1) {
  wire::WorkItem item;
  item.storage_id = context;
  item.layer = layer;
  item.k_tokens = k_tokens;
  item.q_tokens = 1;
  return Work(item);
}
WorkerTask Append(ContextId context, int layer = 0, size_t bytes = 100) {
  wire::WorkItem item;
  item.storage_id = context;
  item.layer = layer;
  item.k_tokens = 1;
  WorkerTask task = Work(item);
  task.payload = Buffer(bytes);
  return task;
}
WorkerTask Release(ContextId context) {
  wire::Release release;
  release.storage_id = context;
  return Task(release);
}
WorkerTask Fork(ContextId parent, ContextId context) {
  wire::Fork fork;
  fork.parent = parent;
  fork.storage_id = context;
  return Task(fork);
}

class Queue {
 public:
  void Add(WorkerTask task) { REQUIRE(tasks_.Add(task, /*must=*/true)); }
  std::optional<TaskQueue::Begun> Begin(absl::Time now = kNow) { return tasks_.Begin(now); }
  // The lane of the task that begins next.
  std::optional<Lane> Next() {
    last_ = Begin();
    return last_.has_value() ? std::optional(last_->lane) : std::nullopt;
  }
  uint64_t last() const { return last_->id; }
  void End(uint64_t id) { tasks_.End(id); }
  TaskQueue& tasks() { return tasks_; }

 private:
  TaskQueue tasks_;
  std::optional<TaskQueue::Begun> last_;
};

TEST_CASE("Steps, appends and orders pass prefills of other layers") {
  Queue queue;
  for (int i = 0; i < 20; ++i) queue.Add(Prefill(100 + i));
  for (int i = 0; i < TaskQueue::kLongOfTenantMax; ++i) CHECK(queue.Next() == Lane::kLong);
  CHECK(queue.Next() == std::nullopt);
  queue.Add(Append(1));
  queue.Add(Step(100, /*layer=*/1));
  queue.Add(Append(2, 0, size_t{8} << 20));
  queue.Add(Release(3));
  CHECK(queue.Next() == Lane::kOrder);
  CHECK(queue.Next() == Lane::kShort);
  CHECK(queue.Next() == Lane::kBulk);
  CHECK(queue.Next() == Lane::kBulk);
  CHECK(queue.Next() == std::nullopt);
}

TEST_CASE("What changes a layer keeps its place among what touches the layer") {
  Queue queue;
  queue.Add(Append(1));
  queue.Add(Prefill(1));
  queue.Add(Prefill(1));
  queue.Add(Step(1));
  queue.Add(Fork(1, 2));
  queue.Add(Append(2));
  queue.Add(Release(1));
  REQUIRE(queue.Next() == Lane::kOrder);
  const uint64_t append = queue.last();
  REQUIRE(queue.Next() == std::nullopt);
  queue.End(append);
  REQUIRE(queue.Next() == Lane::kLong);  // both only read
  const uint64_t first = queue.last();
  REQUIRE(queue.Next() == Lane::kLong);
  const uint64_t second = queue.last();
  REQUIRE(queue.Next() == std::nullopt);
  queue.End(first);
  REQUIRE(queue.Next() == std::nullopt);
  queue.End(second);
  REQUIRE(queue.Next() == Lane::kShort);
  const uint64_t step = queue.last();
  REQUIRE(queue.Next() == std::nullopt);
  queue.End(step);
  REQUIRE(queue.Next() == Lane::kOrder);
  const uint64_t fork = queue.last();
  REQUIRE(queue.Next() == std::nullopt);
  queue.End(fork);
  CHECK(queue.Next() == Lane::kOrder);  // the fork's append
  CHECK(queue.Next() == Lane::kBulk);   // the parent's release
}

TEST_CASE("An inventory comes after all that came before it, and before the rest") {
  Queue queue;
  queue.Add(Prefill(1));
  queue.Add(Task(wire::Inventory{}));
  queue.Add(Append(2));
  REQUIRE(queue.Next() == Lane::kLong);
  const uint64_t prefill = queue.last();
  REQUIRE(queue.Next() == std::nullopt);
  queue.End(prefill);
  REQUIRE(queue.Next() == Lane::kOrder);
  const uint64_t inventory = queue.last();
  REQUIRE(queue.Next() == std::nullopt);
  queue.End(inventory);
  CHECK(queue.Next() == Lane::kOrder);
}

TEST_CASE("Items of few queries are short unless they wait for other workers") {
  Queue queue;
  wire::WorkItem few;
  few.storage_id = 1;
  few.q_tokens = 1;
  few.plan = PlanKind::kPassQ;
  queue.Add(Work(few));
  few.channel = 1;
  queue.Add(Work(few));
  const std::optional<TaskQueue::Begun> first = queue.Begin();
  REQUIRE(first.has_value());
  CHECK(first->lane == Lane::kShort);
  CHECK(first->task.urgent);
  const std::optional<TaskQueue::Begun> second = queue.Begin();
  REQUIRE(second.has_value());
  CHECK(second->lane == Lane::kLong);
  CHECK(!second->task.urgent);
}

TEST_CASE("Long tasks begin in the order they came, also behind one that waits for its layer") {
  Queue queue;
  queue.Add(Append(1, 0, size_t{8} << 20));
  REQUIRE(queue.Next() == Lane::kBulk);
  const uint64_t append = queue.last();
  queue.Add(Prefill(1));
  queue.Add(Prefill(2));
  CHECK(queue.Next() == std::nullopt);
  queue.End(append);
  const std::optional<TaskQueue::Begun> first = queue.Begin();
  REQUIRE(first.has_value());
  CHECK(std::get<wire::Work>(first->task.body).items[0].storage_id == 1);
}

WorkerTask Of(uint64_t tenant, WorkerTask task) {
  std::get<wire::Work>(task.body).tenant = tenant;
  return task;
}
uint64_t TenantOf(const TaskQueue::Begun& begun) {
  return std::get<wire::Work>(begun.task.body).tenant;
}

TEST_CASE("A tenant's flood holds neither short nor long tasks of another one up") {
  Queue queue;
  for (int i = 0; i < 100; ++i) {
    queue.Add(Of(1, Step(1000 + i)));
    queue.Add(Of(1, Prefill(2000 + i)));
  }
  REQUIRE(queue.Next() == Lane::kShort);
  const uint64_t flood = queue.last();
  for (int i = 0; i < TaskQueue::kLongOfTenantMax; ++i) REQUIRE(queue.Next() == Lane::kLong);
  REQUIRE(queue.Next() == std::nullopt);
  queue.Add(Of(2, Step(1)));
  queue.Add(Of(2, Prefill(2)));
  queue.Add(Of(2, Step(3)));
  std::optional<TaskQueue::Begun> begun = queue.Begin();
  REQUIRE(begun.has_value());
  CHECK((begun->lane == Lane::kShort && TenantOf(*begun) == 2));
  const uint64_t own = begun->id;
  begun = queue.Begin();
  REQUIRE(begun.has_value());
  CHECK((begun->lane == Lane::kLong && TenantOf(*begun) == 2));
  REQUIRE(queue.Next() == std::nullopt);
  // One after the other, whoever came first.
  queue.End(flood);
  queue.End(own);
  for (const uint64_t turn : {1, 2}) {
    begun = queue.Begin();
    REQUIRE(begun.has_value());
    CHECK((begun->lane == Lane::kShort && TenantOf(*begun) == turn));
  }
}

TEST_CASE("Of many tenants' short and bulk tasks those begin whose tenant has waited longest") {
  for (const Lane lane : {Lane::kShort, Lane::kBulk}) {
    const int places = lane == Lane::kShort ? TaskQueue::kShortMax : TaskQueue::kBulkMax;
    const auto task = [lane](ContextId context) {
      return lane == Lane::kShort ? Step(context) : Append(context, 0, size_t{8} << 20);
    };
    Queue queue;
    for (uint64_t tenant = 1; tenant <= 6; ++tenant) {
      for (uint64_t i = 0; i < 20; ++i) queue.Add(Of(tenant, task(100 * tenant + i)));
    }
    std::vector<uint64_t> running;
    std::map<uint64_t, int> turns;
    for (int i = 0; i < 60; ++i) {
      while (std::ssize(running) < places) {
        const std::optional<TaskQueue::Begun> begun = queue.Begin();
        REQUIRE(begun.has_value());
        running.push_back(begun->id);
        ++turns[TenantOf(*begun)];
      }
      queue.tasks().End(running.front());
      running.erase(running.begin());
    }
    for (const auto& [tenant, count] : turns) CHECK((count == 10 || count == 11));
    CHECK(turns.size() == 6);
  }
}

TEST_CASE("What is cancelled or late ends without waiting for a place, in every lane") {
  Queue queue;
  for (int i = 0; i < TaskQueue::kLongMax; ++i) queue.Add(Prefill(100 + i));
  while (queue.Next().has_value()) {
  }
  queue.Add(Step(1));
  REQUIRE(queue.Next() == Lane::kShort);
  WorkerTask cancelled = Prefill(1, 1);
  const std::shared_ptr<std::atomic<bool>> cancel = cancelled.cancel;
  WorkerTask late = Prefill(2);
  late.deadline = kNow + absl::Seconds(1);
  WorkerTask step = Step(3);
  step.deadline = kNow + absl::Seconds(1);
  queue.Add(std::move(cancelled));
  queue.Add(std::move(late));
  queue.Add(std::move(step));
  CHECK(queue.Next() == std::nullopt);
  *cancel = true;
  REQUIRE(queue.Next() == Lane::kOrder);
  queue.End(queue.last());
  for (int i = 0; i < 2; ++i) {
    const std::optional<TaskQueue::Begun> begun = queue.Begin(kNow + absl::Seconds(1));
    REQUIRE(begun.has_value());
    CHECK(begun->lane == Lane::kOrder);
    queue.End(begun->id);
  }
}

TEST_CASE("A flood of work leaves room for orders") {
  TaskQueue tasks;
  size_t taken = 0;
  for (WorkerTask task = Prefill(1); tasks.Add(task, /*must=*/false); task = Prefill(1)) ++taken;
  CHECK(taken == TaskQueue::kWorkMax);
  for (WorkerTask task = Release(2); tasks.Add(task, /*must=*/true); task = Release(2)) ++taken;
  CHECK(taken == TaskQueue::kTasksMax);
}

// Against the rule itself: whatever ends when, no two tasks that conflict run at once or swap, and
// all come to run.
TEST_CASE("Random tasks keep their order by layer, and none is left behind") {
  const uint64_t seed = GENERATE(1, 2, 3, 4, 5, 6, 7, 8);
  INFO("seed " << seed);
  Rng rng(seed);
  Queue queue;
  struct Known {
    std::set<std::pair<ContextId, int>> layers;
    bool writes = false;
  };
  std::map<uint64_t, Known> open;  // not ended, by id
  std::vector<uint64_t> running;
  uint64_t added = 0, ended = 0;
  constexpr uint64_t kTasks = 500;
  while (ended < kTasks) {
    if (added < kTasks && rng.Between(0, 2) != 0) {
      Known known;
      const auto context = static_cast<ContextId>(rng.Between(1, 4));
      const int layer = static_cast<int>(rng.Between(0, 1));
      known.layers.insert({context, layer});
      WorkerTask task;
      switch (rng.Between(0, 4)) {
        case 0:
          task = Prefill(context, layer);
          break;
        case 1:
          task = Step(context, layer);
          known.writes = true;
          break;
        case 2:
          task = Step(context, layer, 0);
          break;
        case 3:
          task = Append(context, layer, size_t{2} << 20);
          known.writes = true;
          break;
        default:
          task = Release(context);
          known.layers.insert({context, 1 - layer});
          known.writes = true;
      }
      queue.Add(std::move(task));
      open[++added] = known;
    }
    while (std::optional<TaskQueue::Begun> begun = queue.Begin()) {
      const Known& known = open.at(begun->id);
      for (const auto& [id, other] : open) {
        if (id >= begun->id) break;
        bool common = false;
        for (const auto& layer : other.layers) common |= known.layers.contains(layer);
        REQUIRE(!(common && (known.writes || other.writes)));
      }
      running.push_back(begun->id);
    }
    REQUIRE((!running.empty() || added == ended));
    if (running.empty() || (added < kTasks && rng.Between(0, 1) == 0)) continue;
    const auto i = static_cast<size_t>(rng.Between(0, static_cast<int64_t>(running.size()) - 1));
    queue.End(running[i]);
    open.erase(running[i]);
    running.erase(running.begin() + static_cast<ptrdiff_t>(i));
    ++ended;
  }
  CHECK(queue.tasks().running() == 0);
  CHECK(queue.tasks().waiting() == 0);
}

}  // namespace
}  // namespace annulus
