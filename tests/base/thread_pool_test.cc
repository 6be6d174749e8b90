#include "base/thread_pool.h"

#include <sched.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "tests/catch.h"

namespace annulus {

TEST_CASE("a loop runs each item once, for any number of threads and items") {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    REQUIRE(pool.threads() == threads);
    for (int64_t count : {0, 1, 2, 7, 1000}) {
      CAPTURE(threads, count);
      std::vector<int> ran(static_cast<size_t>(count));  // not atomic: items are disjoint
      pool.ParallelFor(count, [&](int64_t i) { ++ran[static_cast<size_t>(i)]; });
      REQUIRE(ran == std::vector<int>(static_cast<size_t>(count), 1));
    }
  }
  CHECK(ThreadPool(0).threads() >= 1);
}

TEST_CASE("a caller may run where it might before its loop, wherever it began") {
  cpu_set_t before;
  REQUIRE(sched_getaffinity(0, sizeof(before), &before) == 0);
  ThreadPool pool(0);
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &before)) continue;
    CAPTURE(core);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    REQUIRE(sched_setaffinity(0, sizeof(one), &one) == 0);
    std::atomic<int64_t> sum{0};
    const auto add = [&sum](int64_t i) { sum += i; };
    pool.ParallelFor(1000, add);  // bound to a core, perhaps that of another thread
    cpu_set_t after;
    sched_getaffinity(0, sizeof(after), &after);
    CHECK(CPU_EQUAL(&one, &after));
    sched_setaffinity(0, sizeof(before), &before);
    pool.ParallelFor(1000, add);  // where the system left it
    sched_getaffinity(0, sizeof(after), &after);
    CHECK(CPU_EQUAL(&before, &after));
    CHECK(sum == 2 * 499'500);
  }
}

TEST_CASE("loops inside loops and loops of many callers all end") {
  ThreadPool pool(3);
  std::atomic<int64_t> items{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) {
        pool.ParallelFor(5, [&](int64_t) { pool.ParallelFor(3, [&](int64_t) { ++items; }); });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(items == 4 * 50 * 5 * 3);
}

TEST_CASE("many short loops after one another lose no item") {
  ThreadPool pool(2);
  int64_t sum = 0;
  for (int round = 0; round < 5000; ++round) {
    int64_t parts[3] = {};
    pool.ParallelFor(3, [&](int64_t i) { parts[i] = i + 1; });
    sum += parts[0] + parts[1] + parts[2];
  }
  CHECK(sum == 5000 * 6);
}

// A loop of long items, each of which gives way at every `piece_us`, on a thread of its own.
class LongLoop {
 public:
  LongLoop(ThreadPool* pool, int64_t pieces, uint64_t owner = 0, uint64_t tenant = 0)
      : thread_([=, this] {
          const auto item = [&](int64_t) {
            for (int64_t i = 0; i < pieces && !over_; ++i) {
              pool->GiveWay();
              const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
              while (std::chrono::steady_clock::now() < until) {
              }
              ++done_;
            }
          };
          pool->ParallelFor(100'000, item, {.owner = owner, .tenant = tenant});
        }) {}
  ~LongLoop() {
    over_ = true;
    thread_.join();
  }
  void Stop() { over_ = true; }
  int64_t done() const { return done_; }
  void WaitFor(int64_t pieces) const {
    while (done_ < pieces) std::this_thread::yield();
  }

 private:
  std::atomic<bool> over_ = false;
  std::atomic<int64_t> done_ = 0;
  std::thread thread_;
};

TEST_CASE("an urgent loop ends while a long item of another one runs") {
  for (int threads : {1, 2, 4}) {
    CAPTURE(threads);
    ThreadPool pool(threads);
    const LongLoop other(&pool, 1'000'000);  // an item would take a minute
    other.WaitFor(1);
    for (int round = 0; round < 100; ++round) {
      std::atomic<int> items = 0;
      pool.ParallelFor(8, [&](int64_t) { ++items; }, {.urgent = true});
      REQUIRE(items == 8);
    }
    other.WaitFor(other.done() + 1);  // it goes on
  }
}

TEST_CASE("under endless urgent loops the others keep a part of the time") {
  constexpr std::chrono::milliseconds kTime{50};
  const auto spin = [](int64_t) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(10);
    while (std::chrono::steady_clock::now() < until) {
    }
  };
  ThreadPool pool(1);
  const LongLoop other(&pool, 1'000'000);
  other.WaitFor(1);
  int64_t alone = 0, beside = 0;
  // In turn, so that what else the machine does counts in both.
  for (int round = 0; round < 10; ++round) {
    int64_t before = other.done();
    std::this_thread::sleep_for(kTime);
    alone += other.done() - before;
    before = other.done();
    const auto until = std::chrono::steady_clock::now() + kTime;
    while (std::chrono::steady_clock::now() < until) pool.ParallelFor(1, spin, {.urgent = true});
    beside += other.done() - before;
  }
  // A fifth, or less on a busy machine.
  CAPTURE(beside, alone);
  CHECK(beside > alone / 20);
}

TEST_CASE("long loops share the threads by tenant, a tenant's by owner, not by loop") {
  const bool by_tenant = GENERATE(false, true);
  CAPTURE(by_tenant);
  const uint64_t tenant = by_tenant ? 1 : 0;
  ThreadPool pool(1);
  LongLoop one(&pool, 4, 1);
  LongLoop more[3] = {{&pool, 4, 2, tenant},
                      {&pool, 4, by_tenant ? uint64_t{1} : 2, tenant},
                      {&pool, 4, by_tenant ? uint64_t{3} : 2, tenant}};
  for (const LongLoop& loop : more) loop.WaitFor(1);
  const int64_t one_before = one.done();
  int64_t more_before = 0;
  for (const LongLoop& loop : more) more_before += loop.done();
  one.WaitFor(one_before + 800);
  const int64_t one_done = one.done() - one_before;
  int64_t more_done = -more_before;
  for (const LongLoop& loop : more) more_done += loop.done();
  one.Stop();
  for (LongLoop& loop : more) loop.Stop();
  CHECK(more_done > one_done / 2);
  CHECK(more_done < one_done * 2);
}

}  // namespace annulus
