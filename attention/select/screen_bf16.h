// Looks (screen.h) by AVX512-BF16's dot product, where the CPU backend uses it. It adds pairs of
// products, rounds as f32 does, and takes subnormal numbers for 0. Thread-safe functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/select/screen.h"

namespace annulus::select {

// Whether this machine has it and the choice of instruction set allows it.
bool LooksByPairs();

// As Look() of screen.cc, of bf16 rows. A lane of q has two dims of a query, so that a vector of 16
// lanes would be half empty of few queries: those have two lanes each, with four dims. q
// [dim / (2 · lanes), heads padded to 16 / lanes, lanes]. Memory is asked for the next rows.
// REQUIRES: LooksByPairs().
constexpr size_t LanesOfHead(size_t heads) {
  return heads <= 8 ? 2 : 1;
}
void LookPairs(const uint32_t* q, size_t heads, size_t dim, const float* weights,
               const KeyRows& rows, const KeyRows& next, size_t tokens, float* scores);

// The largest magnitude of each dim, a NaN larger than ∞.
void LargestOfPairs(const KeyRows& rows, size_t dim, float* largest);

}  // namespace annulus::select
