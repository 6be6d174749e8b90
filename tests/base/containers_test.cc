
#include "base/lru_cache.h"
#include "tests/catch.h"

namespace annulus {
namespace {

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
