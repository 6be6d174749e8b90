#include "base/thread_pool.h"

#include <sched.h>

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

}  // namespace annulus
