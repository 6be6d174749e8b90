#include "base/lock_order.h"

#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <memory>

#include "absl/synchronization/mutex.h"

#include "tests/catch.h"

namespace annulus {
namespace {

int64_t MappedBytes() {
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

TEST_CASE("no memory is taken for the order in which locks are held") {
  constexpr int kLocks = 20'000;  // about 10 MB of a graph
  ForgetLockOrder();
  const auto locks = std::make_unique<absl::Mutex[]>(kLocks);
  absl::Mutex outer;
  const int64_t before = MappedBytes();
  {
    const absl::MutexLock held(&outer);
    for (int i = 0; i < kLocks; ++i) const absl::MutexLock lock(&locks[i]);
  }
  CHECK(MappedBytes() <= before + (1 << 20));
}

}  // namespace
}  // namespace annulus
