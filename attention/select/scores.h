// Canonical scores: eight f64 accumulators, of dims congruent modulo 8, each summed in ascending
// order and then added up in one fixed order. A product of two f32 is exact in f64, so that no
// instruction set rounds otherwise, and the score depends on row and summary alone. A score that is
// no number counts as +∞: what cannot be weighed is seen. Thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace annulus {

// scores[s·row_count + r] = the dot product of row r [width] f64 with summary s [width]; rows lie
// one after the other, summaries anywhere, and width is a multiple of 8.
void Scores(const double* rows, int row_count, int width, absl::Span<const float* const> summaries,
            float* scores);

// The places of `count` summaries that lie one after the other.
std::vector<const float*> PlacesOf(const float* summaries, int64_t count, int width);

// scores[t] = the sum over j of weights[j] times what is positive of dots[t·dot_count + j]; in f64
// over j as over dims above, rounded.
void WeighedScores(const float* dots, int token_count, const float* weights, int dot_count,
                   float* scores);

}  // namespace annulus
