// Exponentials that are the same on every instruction set: a polynomial in f64 whose products and
// sums are rounded one by one. Thread-safe.
#pragma once

#include <cstdint>

namespace annulus {

// 2^x[i] = mantissa·2^exponent, with a mantissa from √½ to √2; rounded alike on every instruction
// set. |x| at most 2^30.
void Exp2Parts(const double* x, int64_t count, double* mantissas, int32_t* exponents);

}  // namespace annulus
