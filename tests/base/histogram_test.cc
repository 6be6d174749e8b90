#include "base/histogram.h"

#include <thread>

#include "tests/catch.h"

namespace annulus {
namespace {

TEST_CASE("a histogram counts values by range, a bound in the range below it") {
  Histogram histogram({1, 2.5});
  for (const double value : {0.0, 1.0, 1.5, 2.5, 2.6, 100.0}) histogram.Observe(value);
  const Histogram::Reading reading = histogram.Read();
  CHECK(reading.bounds == std::vector<double>{1, 2.5});
  CHECK(reading.counts == std::vector<uint64_t>{2, 2, 2});
  CHECK(reading.sum == 107.6);
}

TEST_CASE("a histogram misses nothing of what threads observe at once") {
  Histogram histogram(Histogram::WaitBounds());
  const auto observe = [&] {
    for (int i = 0; i < 10'000; ++i) histogram.Observe(0.5);
  };
  std::thread other(observe);
  observe();
  other.join();
  const Histogram::Reading reading = histogram.Read();
  uint64_t count = 0;
  for (const uint64_t in_range : reading.counts) count += in_range;
  CHECK(count == 20'000);
  CHECK(reading.sum == 10'000);
}

}  // namespace
}  // namespace annulus
