#include <memory>
#include <thread>

#include "base/bounded_queue.h"
#include "base/lru_cache.h"
#include "tests/catch.h"

namespace annulus {
namespace {

TEST_CASE("A bounded queue refuses beyond its bound and keeps headroom") {
  BoundedQueue<std::unique_ptr<int>> queue(4);
  for (int i = 0; i < 2; ++i) {
    auto item = std::make_unique<int>(i);
    CHECK(queue.TryPush(item, 2));
    CHECK(item == nullptr);
  }
  auto item = std::make_unique<int>(2);
  CHECK_FALSE(queue.TryPush(item, 2));
  REQUIRE(item != nullptr);
  CHECK(queue.TryPush(item));
  item = std::make_unique<int>(3);
  CHECK(queue.TryPush(item));
  item = std::make_unique<int>(4);
  CHECK_FALSE(queue.TryPush(item));
  for (int i = 0; i < 4; ++i) CHECK(**queue.Pop() == i);
  CHECK_FALSE(queue.TryPop().has_value());
}

TEST_CASE("Closing a bounded queue ends the wait once it is empty") {
  BoundedQueue<int> queue(10);
  int sum = 0;
  std::thread consumer([&] {
    while (const std::optional<int> item = queue.Pop()) sum += *item;
  });
  for (int i = 1; i <= 5; ++i) {
    int item = i;
    CHECK(queue.TryPush(item));
  }
  queue.Close();
  consumer.join();
  CHECK(sum == 15);
  int late = 1;
  CHECK_FALSE(queue.TryPush(late));
}

TEST_CASE("An LRU cache forgets what was not asked for longest") {
  LruCache<int> cache(2);
  cache.Insert("a", 1);
  cache.Insert("b", 2);
  REQUIRE(cache.Find("a") != nullptr);
  cache.Insert("c", 3);
  CHECK(cache.Find("b") == nullptr);
  CHECK(*cache.Find("a") == 1);
  cache.Insert("a", 4);
  CHECK(*cache.Find("a") == 4);
  CHECK(*cache.Find("c") == 3);
}

}  // namespace
}  // namespace annulus
