// Looks (screen.h) by AVX512-BF16's dot product, where the CPU backend uses it. It adds pairs of
// products, rounds as f32 does, and takes subnormal numbers for 0. Thread-safe functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/select/screen.h"

namespace annulus::select {

// Whether this machine has it and the choice of instruction set allows it.
bool LooksByPairs();

// As Look() of screen.cc, of bf16 rows: q [dim/2, padded] has of each query the bf16 of two dims.
// Memory is asked for the next rows. REQUIRES: LooksByPairs(); padded a multiple of 16.
void LookPairs(const uint32_t* q, size_t padded, size_t dim, const float* weights,
               const KeyRows& rows, const KeyRows& next, size_t tokens, float* scores);

// The largest magnitude of each dim, a NaN larger than ∞.
void LargestOfPairs(const KeyRows& rows, size_t dim, float* largest);

}  // namespace annulus::select
