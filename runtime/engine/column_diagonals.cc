// A column pass by key and distance, or by spans of them.
#include <algorithm>
#include <cstring>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/engine/column_pass.h"

namespace annulus {

size_t ColumnPass::WholeBytes(const Share& share, ColumnTrip trip) const {
  const int64_t of_block =
      trip == ColumnTrip::kSpans ? ColumnQueries::SpanWeights(queries_.size()) : diagonals();
  return share.kv_heads.size() * share.blocks.size() * static_cast<size_t>(group_ * of_block) *
         sizeof(uint64_t);
}

int64_t ColumnPass::WeightBytes(const Share& share, ColumnTrip trip) const {
  const int64_t floats = trip == ColumnTrip::kSpans ? std::ssize(share.blocks) * spec_.head_dim
                                                    : group_ * share.tokens;
  return static_cast<int64_t>(WholeBytes(share, trip)) +
         std::ssize(share.kv_heads) * floats * static_cast<int64_t>(sizeof(float));
}

absl::Status ColumnPass::CheckWeights(ColumnTrip trip) const {
  if (queries_.end > kv_tokens_) {
    return absl::InvalidArgumentError(
        absl::StrCat("q_start: ", queries_.begin, " for ", queries_.size(),
                     " queries; expected positions below kv_len, ", kv_tokens_));
  }
  if (queries_.size() > ColumnQueries::kDiagonalRowsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokens of q: ", queries_.size(), "; expected at most ", ColumnQueries::kDiagonalRowsMax));
  }
  int64_t bytes = 0;
  for (const Share& share : shares_) bytes += WeightBytes(share, trip);
  if (bytes <= kSelectBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("kv_len: ", kv_tokens_, " with ", bytes,
                                                 " bytes of weights; expected at most "
                                                 "select_bytes_max, ",
                                                 kSelectBytesMax));
}

absl::Status ColumnPass::Weigh(int rank, const std::byte* asked, float scale, const Loops& loops,
                               WeighPart body) const {
  const Share& share = ShareOf(rank);
  const auto of_head = static_cast<size_t>(sums_of_head());
  ANNULUS_ASSIGN_OR_RETURN(const std::vector<double> logs, LogsOf(rank, asked));
  const std::vector<ColumnQueries> queries = QueriesOf(share, asked, scale);
  std::mutex mutex;
  absl::Status status;
  ForEachPart(share, loops, [&](size_t i, int64_t from, int64_t to) {
    const absl::Status ended =
        body(queries[i], i, from, to, absl::MakeSpan(logs).subspan(i * of_head, of_head));
    const std::lock_guard<std::mutex> lock(mutex);
    status.Update(ended);
  });
  ANNULUS_RETURN_IF_ERROR(status);
  if (loops.cancelled()) return absl::CancelledError("the call was cancelled as keys were chosen");
  return absl::OkStatus();
}

absl::StatusOr<Buffer> ColumnPass::Diagonals(int rank, const std::byte* asked, float scale,
                                             const SelectKeys& keys, const Loops& loops) const {
  const Share& share = ShareOf(rank);
  const auto blocks = std::ssize(share.blocks);
  Buffer answer(static_cast<size_t>(WeightBytes(share, ColumnTrip::kDiagonals)));
  auto* const diagonals = reinterpret_cast<uint64_t*>(answer.data());
  auto* const columns =
      reinterpret_cast<float*>(answer.data() + WholeBytes(share, ColumnTrip::kDiagonals));
  ANNULUS_RETURN_IF_ERROR(Weigh(
      rank, asked, scale, loops,
      [&](const ColumnQueries& queries, size_t i, int64_t from, int64_t to,
          absl::Span<const double> logs) {
        const auto head = static_cast<int64_t>(i);
        // All blocks before are whole.
        return queries.Diagonals(keys, share.kv_heads[i],
                                 absl::MakeSpan(share.blocks).subspan(from, to - from), logs,
                                 columns + group_ * (head * share.tokens + from * kBlockTokens),
                                 diagonals + (head * blocks + from) * group_ * this->diagonals());
      }));
  return answer;
}

absl::StatusOr<Buffer> ColumnPass::Spans(int rank, const std::byte* asked, float scale,
                                         const SelectKeys& keys, const Loops& loops) const {
  const Share& share = ShareOf(rank);
  const auto blocks = std::ssize(share.blocks);
  const int64_t of_block = group_ * ColumnQueries::SpanWeights(queries_.size());
  Buffer answer(static_cast<size_t>(WeightBytes(share, ColumnTrip::kSpans)));
  auto* const weights = reinterpret_cast<uint64_t*>(answer.data());
  auto* const sums =
      reinterpret_cast<float*>(answer.data() + WholeBytes(share, ColumnTrip::kSpans));
  ANNULUS_RETURN_IF_ERROR(Weigh(rank, asked, scale, loops,
                                [&](const ColumnQueries& queries, size_t i, int64_t from,
                                    int64_t to, absl::Span<const double> logs) {
                                  const int64_t before = static_cast<int64_t>(i) * blocks + from;
                                  return queries.Spans(
                                      keys, share.kv_heads[i],
                                      absl::MakeSpan(share.blocks).subspan(from, to - from), logs,
                                      weights + before * of_block, sums + before * spec_.head_dim);
                                }));
  return answer;
}

void ColumnPass::Merge::AddDiagonals(const Share& share, const std::byte* at) {
  const int64_t group = of_.group_, tokens_all = of_.kv_tokens_, count = of_.diagonals();
  diagonals_.resize(static_cast<size_t>(of_.spec_.heads * tokens_all));
  std::vector<uint64_t> of_block(static_cast<size_t>(count));
  for (const int kv_head : share.kv_heads) {
    for (const int64_t block : share.blocks) {
      const int64_t first = of_.queries_.begin - block * kBlockTokens - kBlockTokens + 1;
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        std::memcpy(of_block.data(), at, of_block.size() * sizeof(uint64_t));
        at += of_block.size() * sizeof(uint64_t);
        uint64_t* const to = diagonals_.data() + head * tokens_all;
        for (int64_t j = std::max<int64_t>(0, -first); j < count; ++j) {
          to[first + j] += of_block[static_cast<size_t>(j)];
        }
      }
    }
  }
  AddByKey(share, group, at);
}

void ColumnPass::Merge::AddSpans(const Share& share, const std::byte* at) {
  const int64_t group = of_.group_, spans = of_.spans(), dim = of_.spec_.head_dim;
  column_spans_.resize(static_cast<size_t>(of_.spec_.heads * spans));
  diagonal_spans_.resize(column_spans_.size());
  key_sums_.resize(static_cast<size_t>(of_.spec_.kv_heads * BlocksOf(of_.kv_tokens_) * dim));
  std::vector<uint64_t> weights(
      static_cast<size_t>(ColumnQueries::SpanWeights(of_.queries_.size())));
  for (const int kv_head : share.kv_heads) {
    for (const int64_t block : share.blocks) {
      const int64_t span = block * kBlockTokens / kSpanTokens;
      const int64_t distance = ColumnQueries::FirstSpan(of_.queries_.begin, block);
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        std::memcpy(weights.data(), at, weights.size() * sizeof(uint64_t));
        at += weights.size() * sizeof(uint64_t);
        // Spans beyond the last query's have no weight.
        if (span < spans) column_spans_[head * spans + span] += weights[0];
        for (size_t j = 1; j < weights.size(); ++j) {
          const int64_t to = distance + static_cast<int64_t>(j) - 1;
          if (to < spans) diagonal_spans_[head * spans + to] += weights[j];
        }
      }
    }
  }
  for (const int kv_head : share.kv_heads) {
    for (const int64_t block : share.blocks) {
      const int64_t place = kv_head * BlocksOf(of_.kv_tokens_) + block;
      std::memcpy(key_sums_.data() + place * dim, at, static_cast<size_t>(dim) * sizeof(float));
      at += static_cast<size_t>(dim) * sizeof(float);
    }
  }
}

std::vector<float> ColumnPass::Merge::KeyMeans() const {
  if (key_sums_.empty()) return {};
  const int64_t blocks = BlocksOf(of_.kv_tokens_), dim = of_.spec_.head_dim;
  constexpr int64_t kBlocksOfSpan = kSpanTokens / kBlockTokens;
  std::vector<float> means;
  means.reserve(static_cast<size_t>(of_.spec_.kv_heads * of_.spans() * dim));
  for (int64_t kv_head = 0; kv_head < of_.spec_.kv_heads; ++kv_head) {
    for (int64_t span = 0; span < of_.spans(); ++span) {
      const int64_t first = span * kBlocksOfSpan, end = std::min(blocks, first + kBlocksOfSpan);
      const int64_t tokens = std::min(kSpanTokens, of_.queries_.end - span * kSpanTokens);
      for (int64_t c = 0; c < dim; ++c) {
        double sum = 0;
        for (int64_t block = first; block < end; ++block) {
          sum += key_sums_[static_cast<size_t>((kv_head * blocks + block) * dim + c)];
        }
        means.push_back(static_cast<float>(sum / static_cast<double>(tokens)));
      }
    }
  }
  return means;
}

absl::StatusOr<KeyListData> ColumnPass::Merge::Pick(const ColumnSelector& word, const TensorView& q,
                                                    float scale) const {
  const std::vector<float> means = KeyMeans();
  return word.Pick({.q = q,
                    .dtype = of_.spec_.dtype,
                    .queries = {of_.queries_.end - q.tokens, of_.queries_.end},
                    .kv_tokens = of_.kv_tokens_,
                    .kv_heads = of_.spec_.kv_heads,
                    .scale = scale,
                    .columns = votes_,
                    .diagonals = diagonals_,
                    .column_spans = column_spans_,
                    .diagonal_spans = diagonal_spans_,
                    .key_means = means});
}

}  // namespace annulus
