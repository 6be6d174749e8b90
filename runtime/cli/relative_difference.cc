#include "runtime/cli/relative_difference.h"

#include <cmath>
#include <cstdint>

#include "base/check.h"

namespace annulus {

double RelativeDifference(const Tensor& a, const Tensor& b) {
  ANNULUS_CHECK(a.size_bytes() == b.size_bytes() && a.dtype() == DType::kF32);
  double difference = 0;
  double norm = 0;
  for (int64_t i = 0; i < b.view().size(); ++i) {
    const double d = double{a.f32()[i]} - b.f32()[i];
    difference += d * d;
    norm += double{b.f32()[i]} * b.f32()[i];
  }
  return difference == 0 ? 0 : std::sqrt(difference / norm);  // to nothing, infinite
}

}  // namespace annulus
