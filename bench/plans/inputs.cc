#include "bench/plans/inputs.h"

#include <algorithm>
#include <array>

#include "base/rng.h"
#include "base/thread_pool.h"

namespace annulus {
namespace {

constexpr size_t kDimMax = 576;
// Of a uniform 16-bit integer to variance 1: √3 / 2^15.
constexpr float kStep = 1.7320508f / 32768;

size_t RowBytes(const Problem& problem, int64_t dim) {
  return static_cast<size_t>(dim) * SizeOf(problem.dtype);
}

}  // namespace

void Inputs::Fill(InputKind kind, int head, int64_t token, int64_t dim, DType dtype,
                  std::byte* to) const {
  // The product spreads neighbouring tokens over the seeds; Rng mixes what it is given.
  Rng rng(seed_ ^ (static_cast<uint64_t>(token) * 0x9e3779b97f4a7c15u) ^
          ((static_cast<uint64_t>(kind) << 16 | static_cast<uint64_t>(head)) << 44));
  std::array<float, kDimMax + 4> row;
  for (size_t c = 0; c < static_cast<size_t>(dim); c += 4) {
    const uint64_t word = rng.Next();
    for (size_t i = 0; i < 4; ++i) {
      row[c + i] = kStep * static_cast<float>(static_cast<int16_t>(word >> (16 * i)));
    }
  }
  Convert(row.data(), DType::kF32, to, dtype, dim);
}

int64_t InputPages::SizeBytes(const Problem& problem, int kv_heads, int64_t tokens) {
  const int64_t dims = problem.head_dim + (problem.v_is_k_prefix ? 0 : problem.v_head_dim);
  return tokens * kv_heads * dims * static_cast<int64_t>(SizeOf(problem.dtype));
}

InputPages::InputPages(const Inputs& inputs, const Problem& problem, HeadRange heads,
                       const BlockSet& blocks, int threads)
    : bytes_(static_cast<size_t>(
          SizeBytes(problem, heads.count, blocks.TokenCount(problem.kv_tokens)))),
      table_(problem.dtype, heads.first, heads.count, problem.head_dim, problem.v_head_dim,
             BlocksOf(problem.kv_tokens)) {
  const size_t k_row = RowBytes(problem, problem.head_dim);
  const size_t v_row = problem.v_is_k_prefix ? 0 : RowBytes(problem, problem.v_head_dim);
  const std::vector<int64_t> held = blocks.ToVector();
  // Only the context's last block may be short, so that it is the last of its head's pages.
  const int64_t head_bytes = SizeBytes(problem, 1, blocks.TokenCount(problem.kv_tokens));
  const auto count = static_cast<int64_t>(held.size());
  ThreadPool(threads).ParallelFor(heads.count * count, [&](int64_t i) {
    const int head = heads.first + static_cast<int>(i / count);
    const int64_t block = held[static_cast<size_t>(i % count)];
    const int64_t begin = block * kBlockTokens;
    const int64_t tokens = std::min(kBlockTokens, problem.kv_tokens - begin);
    std::byte* to = bytes_.data() + (i / count) * head_bytes +
                    static_cast<size_t>((i % count) * kBlockTokens) * (k_row + v_row);
    KvPage page = {to, to, problem.head_dim, problem.head_dim};
    for (int64_t t = begin; t < begin + tokens; ++t, to += k_row) {
      inputs.Fill(InputKind::kKey, head, t, problem.head_dim, problem.dtype, to);
    }
    if (!problem.v_is_k_prefix) {
      page.v = to;
      page.v_row_stride = problem.v_head_dim;
      for (int64_t t = begin; t < begin + tokens; ++t, to += v_row) {
        inputs.Fill(InputKind::kValue, head, t, problem.v_head_dim, problem.dtype, to);
      }
    }
    table_.Set(head, block, page);
  });
}

Tensor MakeQueries(const Inputs& inputs, const Problem& problem,
                   const std::vector<TokenRange>& ranges, int threads) {
  std::vector<int64_t> positions;
  for (const TokenRange& range : ranges) {
    for (int64_t t = range.begin; t < range.end; ++t) positions.push_back(t);
  }
  const auto rows = static_cast<int64_t>(positions.size());
  Tensor q(problem.dtype, rows, problem.heads, problem.head_dim);
  const size_t row_bytes = RowBytes(problem, problem.head_dim);
  ThreadPool(threads).ParallelFor(rows, [&](int64_t row) {
    std::byte* to = q.data() + static_cast<size_t>(row * problem.heads) * row_bytes;
    for (int head = 0; head < problem.heads; ++head, to += row_bytes) {
      inputs.Fill(InputKind::kQuery, head, positions[static_cast<size_t>(row)], problem.head_dim,
                  problem.dtype, to);
    }
  });
  return q;
}

}  // namespace annulus
