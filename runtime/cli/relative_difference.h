// How far two answers are apart. Pure.
#pragma once

#include "annulus/tensor.h"

namespace annulus {

// ‖a − b‖ / ‖b‖ over all elements (Frobenius); both f32 of equal shape.
double RelativeDifference(const Tensor& a, const Tensor& b);

}  // namespace annulus
