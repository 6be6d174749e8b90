#include "bench/plans/check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/rng.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Of KV held at a time for the oracle.
constexpr size_t kOracleBlocks = 256;

// Keys to be looked at before no more rows are drawn: about 0.2 µs each.
constexpr int64_t kKeysMax = int64_t{1} << 23;

// into ⊕= from, as attention/partial.h has it, in f64.
void Merge(const ReferenceAnswer& from, ReferenceAnswer* into) {
  if (from.lse == -kInfinity) return;
  const double lse =
      std::max(into->lse, from.lse) + std::log1p(std::exp(-std::abs(into->lse - from.lse)));
  for (size_t c = 0; c < into->out.size(); ++c) {
    into->out[c] =
        into->out[c] * std::exp(into->lse - lse) + from.out[c] * std::exp(from.lse - lse);
  }
  into->lse = lse;
}

// The numbers from 0 to before `count` by chance, each once: the head of a shuffle, of which only
// the places that have been swapped are kept.
class Draw {
 public:
  Draw(int64_t count, uint64_t seed) : count_(count), rng_(seed) {}

  int64_t left() const { return count_ - drawn_; }

  // REQUIRES: left() > 0.
  int64_t Next() {
    const int64_t at = drawn_ + static_cast<int64_t>(rng_.Below(static_cast<uint64_t>(left())));
    const int64_t value = At(at);
    swapped_[at] = At(drawn_);
    swapped_.erase(drawn_++);
    return value;
  }

 private:
  int64_t At(int64_t place) const {
    const auto found = swapped_.find(place);
    return found == swapped_.end() ? place : found->second;
  }

  const int64_t count_;
  Rng rng_;
  int64_t drawn_ = 0;
  std::unordered_map<int64_t, int64_t> swapped_;  // from drawn_ on: place to number
};

}  // namespace

Tolerance ToleranceOf(DType dtype, MemoryKind computed_in) {
  Tolerance tolerance;
  if (dtype == DType::kBF16) tolerance.out = 1e-2;
  if (computed_in == MemoryKind::kDevice) {
    if (dtype == DType::kF16) tolerance.out = 2e-3;
    tolerance.lse = 1e-4;
  }
  return tolerance;
}

absl::StatusOr<ReferenceAnswer> OracleRow(const Inputs& inputs, const Problem& problem, float scale,
                                          int64_t position, int head) {
  const int kv_head = head / problem.group();
  const Tensor q = [&] {
    Tensor row(problem.dtype, 1, 1, problem.head_dim);
    inputs.Fill(InputKind::kQuery, head, position, problem.head_dim, problem.dtype, row.data());
    return row;
  }();
  ReferenceAnswer answer{std::vector<double>(static_cast<size_t>(problem.v_head_dim)), -kInfinity};
  std::vector<int64_t> blocks;
  const auto add_blocks = [&]() -> absl::Status {
    if (blocks.empty()) return absl::OkStatus();
    const BlockSet keys = BlockSet::FromBlocks(blocks);
    blocks.clear();
    ANNULUS_ASSIGN_OR_RETURN(const InputPages pages, MakePages(inputs, problem, {kv_head, 1}, keys,
                                                               HostMemory(), /*threads=*/1));
    ANNULUS_ASSIGN_OR_RETURN(const ReferenceAnswer part,
                             ReferenceRow(q.data(), problem.dtype, pages.table, problem.keys().end,
                                          problem.pattern, kv_head, position, scale, &keys));
    Merge(part, &answer);
    return absl::OkStatus();
  };
  // By the pattern's meaning alone: its compiled rows are what is being checked.
  for (int64_t k = 0; k < problem.keys().end; ++k) {
    if (!problem.pattern.Allows(kv_head, position, k)) continue;
    blocks.push_back(k / kBlockTokens);
    if (blocks.size() == kOracleBlocks) ANNULUS_RETURN_IF_ERROR(add_blocks());
    k = (k / kBlockTokens + 1) * kBlockTokens - 1;
  }
  ANNULUS_RETURN_IF_ERROR(add_blocks());
  return answer;
}

absl::StatusOr<CheckResult> CheckRows(const Inputs& inputs, const Problem& problem, float scale,
                                      const std::vector<TokenRange>& ranges, PartialView answer,
                                      uint64_t seed, int rows_max, MemoryKind computed_in) {
  const Tolerance tolerance = ToleranceOf(problem.dtype, computed_in);
  CheckResult result;
  Draw draw(answer.rows * answer.heads, seed);
  int64_t keys = 0;
  while (draw.left() > 0 && result.rows < rows_max && keys < kKeysMax) {
    const int64_t at = draw.Next();
    const int64_t row = at / answer.heads;
    const auto head = static_cast<int>(at % answer.heads);
    int64_t position = row;
    for (const TokenRange& range : ranges) {
      if (position < range.size()) {
        position += range.begin;
        break;
      }
      position -= range.size();
    }
    ANNULUS_ASSIGN_OR_RETURN(const ReferenceAnswer expected,
                             OracleRow(inputs, problem, scale, position, head));
    const RowError error = ErrorOf(answer.out + at * answer.v_head_dim, answer.lse[at], expected);
    result.max_rel_err = std::max(result.max_rel_err, error.out);
    if (result.wrong.empty() && (error.out > tolerance.out || error.lse > tolerance.lse)) {
      result.wrong = absl::StrFormat(
          "query %d, head %d: out is wrong by %.2g (tolerance %.2g), lse by %.2g (%.2g)", position,
          head, error.out, tolerance.out, error.lse, tolerance.lse);
    }
    ++result.rows;
    keys +=
        1 + problem.pattern
                .CountPairs(head / problem.group(), {position, position + 1}, problem.keys().end)
                .visited;
  }
  return result;
}

}  // namespace annulus
