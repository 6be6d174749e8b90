#include "attention/select/columns.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

#include "attention/block_set.h"
#include "attention/select/exp2.h"
#include "attention/select/scores.h"
#include "base/status.h"

namespace annulus {
namespace {

// In kWeightUnit. A power of two times it is exact, and half is added once.
uint64_t Whole(double weight) {
  return static_cast<uint64_t>(weight / kWeightUnit + 0.5);
}

}  // namespace

double ExpSum::Log2() const {
  if (top_ == kSpoiled) return std::numeric_limits<double>::quiet_NaN();
  if (top_ == kEmpty) return -std::numeric_limits<double>::infinity();
  double sum = 0;
  for (int i = kBins - 1; i >= 0; --i) sum = sum * 0x1p32 + static_cast<double>(bins_[i]);
  return std::log2(sum) + (32.0 * (static_cast<double>(top_) - kBelow) - kMantissaBits);
}

ColumnQueries::ColumnQueries(const TensorView& q, int64_t q_begin, int64_t kv_tokens, float scale)
    : rows_(q.tokens),
      group_(q.heads),
      dim_(q.dim),
      q_begin_(q_begin),
      kv_tokens_(kv_tokens),
      factor_(double{scale} * std::numbers::log2e),
      values_(static_cast<size_t>(q.size())) {
  std::vector<float> row(static_cast<size_t>(dim_));
  double* to = values_.data();
  for (int64_t head = 0; head < group_; ++head) {
    for (int64_t r = 0; r < rows_; ++r, to += dim_) {
      Convert(q.Row(r, static_cast<int>(head)), q.dtype, row.data(), DType::kF32, dim_);
      std::copy(row.begin(), row.end(), to);
    }
  }
}

int64_t ColumnQueries::FirstRow(int64_t position) const {
  return std::clamp<int64_t>(position - q_begin_, 0, rows_);
}

template <typename Body>
absl::Status ColumnQueries::ForEachBlock(const SelectKeys& keys, int kv_head,
                                         absl::Span<const int64_t> blocks, Body body) const {
  const DType dtype = keys.kv->dtype();
  std::vector<float> k(static_cast<size_t>(kBlockTokens * dim_));
  const std::vector<const float*> k_rows = PlacesOf(k.data(), kBlockTokens, static_cast<int>(dim_));
  std::vector<float> scores(static_cast<size_t>(kBlockTokens * group_ * rows_));
  std::vector<std::byte> staged;
  for (const int64_t block : blocks) {
    const KvPage& page = keys.kv->page(kv_head, block);
    const int64_t tokens = std::min(kBlockTokens, kv_tokens_ - block * kBlockTokens);
    const std::byte* from = page.k;
    if (keys.kv->memory() != MemoryKind::kHost) {
      const auto elements = static_cast<size_t>((tokens - 1) * page.k_row_stride + dim_);
      staged.resize(elements * SizeOf(dtype));
      ANNULUS_RETURN_IF_ERROR(keys.space->CopyOut(from, staged.data(), staged.size()));
      from = staged.data();
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const auto at = static_cast<size_t>(t * page.k_row_stride) * SizeOf(dtype);
      Convert(from + at, dtype, k.data() + t * dim_, DType::kF32, dim_);
    }
    Scores(values_.data(), static_cast<int>(group_ * rows_), static_cast<int>(dim_),
           {k_rows.data(), static_cast<size_t>(tokens)}, scores.data());
    body(block * kBlockTokens, tokens, k.data(), scores.data());
  }
  return absl::OkStatus();
}

absl::Status ColumnQueries::AddSums(const SelectKeys& keys, int kv_head,
                                    absl::Span<const int64_t> blocks,
                                    absl::Span<ExpSum> sums) const {
  const auto rows = static_cast<size_t>(rows_);
  std::vector<double> x(rows), mantissas(rows);
  std::vector<int32_t> exponents(rows);
  return ForEachBlock(
      keys, kv_head, blocks, [&](int64_t first, int64_t tokens, const float*, const float* scores) {
        for (int64_t t = 0; t < tokens; ++t) {
          const int64_t first_row = FirstRow(first + t), seen = rows_ - first_row;
          for (int64_t head = 0; head < group_; ++head) {
            const float* of_head = scores + (t * group_ + head) * rows_ + first_row;
            ExpSum* to = sums.data() + head * rows_ + first_row;
            for (int64_t r = 0; r < seen; ++r) {
              x[r] = double{of_head[r]} * factor_;
              if (std::abs(x[r]) < ExpSum::kExponentMax) continue;  // not so of NaN
              to[r].Spoil();
              x[r] = 0;
            }
            Exp2Parts(x.data(), seen, mantissas.data(), exponents.data());
            for (int64_t r = 0; r < seen; ++r) {
              // Of a positive number half is added and the rest cut off.
              const auto mantissa = static_cast<uint32_t>(mantissas[r] * 0x1p30 + 0.5);
              to[r].Add(mantissa, exponents[r]);
            }
          }
        }
      });
}

// The weights of rows by one key.
class ColumnQueries::Weigher {
 public:
  explicit Weigher(int64_t rows)
      : x_(static_cast<size_t>(rows)), mantissas_(x_.size()), exponents_(x_.size()) {}

  // fn(row, weight) of each of `count` scores whose weight counts, ascending.
  template <typename Fn>
  void ForEach(const float* scores, const double* logs, int64_t count, double factor, Fn fn) {
    for (int64_t r = 0; r < count; ++r) {
      x_[r] = std::max(double{scores[r]} * factor - logs[r], -1100.0);
    }
    Exp2Parts(x_.data(), count, mantissas_.data(), exponents_.data());
    for (int64_t r = 0; r < count; ++r) {
      if (exponents_[r] < -1000) continue;
      const uint64_t power = static_cast<uint64_t>(exponents_[r] + 1023) << 52;
      fn(r, mantissas_[r] * std::bit_cast<double>(power));
    }
  }

 private:
  std::vector<double> x_, mantissas_;
  std::vector<int32_t> exponents_;
};

absl::Status ColumnQueries::Votes(const SelectKeys& keys, int kv_head,
                                  absl::Span<const int64_t> blocks, absl::Span<const double> logs,
                                  float* votes) const {
  Weigher weigher(rows_);
  return ForEachBlock(
      keys, kv_head, blocks, [&](int64_t first, int64_t tokens, const float*, const float* scores) {
        for (int64_t t = 0; t < tokens; ++t) {
          const int64_t first_row = FirstRow(first + t);
          double vote = 0;
          for (int64_t head = 0; head < group_; ++head) {
            const int64_t at = head * rows_ + first_row;
            weigher.ForEach(scores + t * group_ * rows_ + at, logs.data() + at, rows_ - first_row,
                            factor_, [&vote](int64_t, double weight) { vote += weight; });
          }
          *votes++ = static_cast<float>(vote);
        }
      });
}

absl::Status ColumnQueries::Diagonals(const SelectKeys& keys, int kv_head,
                                      absl::Span<const int64_t> blocks,
                                      absl::Span<const double> logs, float* columns,
                                      uint64_t* diagonals) const {
  Weigher weigher(rows_);
  return ForEachBlock(
      keys, kv_head, blocks, [&](int64_t first, int64_t tokens, const float*, const float* scores) {
        std::fill_n(diagonals, group_ * this->diagonals(), 0);
        for (int64_t head = 0; head < group_; ++head) {
          for (int64_t t = 0; t < tokens; ++t) {
            const int64_t first_row = FirstRow(first + t), at = head * rows_ + first_row;
            uint64_t* const of_row = diagonals + first_row + kBlockTokens - 1 - t;
            double column = 0;
            weigher.ForEach(scores + t * group_ * rows_ + at, logs.data() + at, rows_ - first_row,
                            factor_, [&](int64_t r, double weight) {
                              column += weight;
                              of_row[r] += Whole(weight);
                            });
            *columns++ = static_cast<float>(column);
          }
          diagonals += this->diagonals();
        }
      });
}

absl::Status ColumnQueries::Spans(const SelectKeys& keys, int kv_head,
                                  absl::Span<const int64_t> blocks, absl::Span<const double> logs,
                                  uint64_t* weights, float* key_sums) const {
  Weigher weigher(rows_);
  std::vector<double> sums(static_cast<size_t>(dim_));
  return ForEachBlock(
      keys, kv_head, blocks,
      [&](int64_t first, int64_t tokens, const float* k, const float* scores) {
        std::fill_n(weights, group_ * SpanWeights(rows_), 0);
        const int64_t before = FirstSpan(q_begin_, first / kBlockTokens);
        for (int64_t head = 0; head < group_; ++head, weights += SpanWeights(rows_)) {
          for (int64_t t = 0; t < tokens; ++t) {
            const int64_t first_row = FirstRow(first + t), at = head * rows_ + first_row;
            const int64_t distance = q_begin_ + first_row - first - t;
            weigher.ForEach(scores + t * group_ * rows_ + at, logs.data() + at, rows_ - first_row,
                            factor_, [&](int64_t r, double weight) {
                              weights[0] += Whole(weight);
                              weights[1 + (distance + r) / kSpanTokens - before] += Whole(weight);
                            });
          }
        }
        std::fill(sums.begin(), sums.end(), 0.0);
        const int64_t summed = std::min(tokens, q_begin_ + rows_ - first);
        for (int64_t t = 0; t < summed; ++t) {
          for (int64_t c = 0; c < dim_; ++c) sums[c] += k[t * dim_ + c];
        }
        key_sums = std::copy(sums.begin(), sums.end(), key_sums);
      });
}

}  // namespace annulus
