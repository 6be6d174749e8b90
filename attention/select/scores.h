// Canonical scores: eight f64 accumulators, of dims congruent modulo 8, each summed in ascending
// order and then added up in one fixed order. A product of two f32 is exact in f64, so that no
// instruction set rounds otherwise, and the score depends on row and summary alone. A score that is
// no number counts as +∞: what cannot be weighed is seen. Thread-safe.
#pragma once

namespace annulus {

// scores[s·row_count + r] = the dot product of row r [width] f64 with summary s [width]; each kind
// lies one after the other, and width is a multiple of 8.
void Scores(const double* rows, int row_count, int width, const float* summaries, int summary_count,
            float* scores);

}  // namespace annulus
