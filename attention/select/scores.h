// Canonical scores: eight f64 accumulators, of dims congruent modulo 8, each summed in ascending
// order and then added up in one fixed order. A product of two f32 is exact in f64, so that no
// instruction set rounds otherwise, and the score depends on row and summary alone. A score that is
// no number counts as +∞: what cannot be weighed is seen. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace annulus {

// scores[s·row_count + r] = the dot product of row r [width] f64 with summary s [width]; rows lie
// one after the other, summaries anywhere, and width is a multiple of 8.
void Scores(const double* rows, int row_count, int width, absl::Span<const float* const> summaries,
            float* scores);

// Rows that are scored together at most, so that they stay in L1 while summaries pass by, and
// summaries: the first few of them are waited for.
inline constexpr size_t kRowsAtOnce = 16;
inline constexpr size_t kSummariesAtOnce = 256;

// Scores some rows by any number of summaries, kSummariesAtOnce at a time. Not thread-safe.
class PiecewiseScores {
 public:
  PiecewiseScores() : scores_(kRowsAtOnce * kSummariesAtOnce) {}

  // Calls take(first, count, scores), which gets what Scores() says of summaries
  // [first, first + count), piece by piece. REQUIRES: row_count ≤ kRowsAtOnce.
  template <typename Take>
  void Score(const double* rows, size_t row_count, int width,
             absl::Span<const float* const> summaries, Take take) {
    for (size_t first = 0; first < summaries.size(); first += kSummariesAtOnce) {
      const auto piece = summaries.subspan(first, kSummariesAtOnce);
      Scores(rows, static_cast<int>(row_count), width, piece, scores_.data());
      take(first, piece.size(), static_cast<const float*>(scores_.data()));
    }
  }

 private:
  std::vector<float> scores_;
};

// The places of `count` summaries that lie one after the other.
std::vector<const float*> PlacesOf(const float* summaries, int64_t count, int width);

// scores[t] = the sum over j of weights[j] times what is positive of dots[t·dot_count + j]; in f64
// over j as over dims above, rounded.
void WeighedScores(const float* dots, int token_count, const float* weights, int dot_count,
                   float* scores);

}  // namespace annulus
