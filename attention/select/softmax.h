// The softmax by which words weigh units that they know all scores of. Thread-safe.
#pragma once

#include "absl/types/span.h"

namespace annulus {

// weights[i] = exp(scale·scores[i]) / the sum of all, in f64: the exponential a polynomial that is
// the same on every instruction set, the sum in ascending order. REQUIRES: finite scores.
void Softmax(absl::Span<const float> scores, double scale, absl::Span<double> weights);

}  // namespace annulus
