// Canonical scores: eight f64 accumulators, of dims congruent modulo 8, each summed in ascending
// order and then added up in one fixed order. A product of two f32 is exact in f64, so that no
// instruction set rounds otherwise, and the score depends on row and summary alone. A score that is
// no number counts as +∞: what cannot be weighed is seen. Thread-safe.
#pragma once

namespace annulus {

// scores[r] = the dot product of rows[r] [width] f64, one after the other, with summary [width];
// width is a multiple of 8.
void Scores(const double* rows, int count, int width, const float* summary, float* scores);

}  // namespace annulus
