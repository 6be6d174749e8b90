// Histogram: how many observed values lie in each of some ranges, for metrics. Thread-safe; to
// observe takes no lock.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace annulus {

class Histogram {
 public:
  struct Reading {
    std::vector<double> bounds;    // of the ranges, from above and inclusive; ascending
    std::vector<uint64_t> counts;  // by range; one more than bounds, for what is above them all
    double sum = 0;                // of all values
  };

  explicit Histogram(std::vector<double> bounds);
  // Of seconds that something waited for its turn.
  static std::vector<double> WaitBounds();

  void Observe(double value);
  Reading Read() const;

 private:
  const std::vector<double> bounds_;
  const std::unique_ptr<std::atomic<uint64_t>[]> counts_;
  std::atomic<double> sum_ = 0;
};

}  // namespace annulus
