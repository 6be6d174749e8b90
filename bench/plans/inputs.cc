#include "bench/plans/inputs.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/rng.h"
#include "base/status.h"
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

absl::StatusOr<InputPages> MakePages(const Inputs& inputs, const Problem& problem, HeadRange heads,
                                     const BlockSet& blocks, MemorySpace& space, int threads) {
  const size_t k_row = RowBytes(problem, problem.head_dim);
  const size_t v_row = problem.v_is_k_prefix ? 0 : RowBytes(problem, problem.v_head_dim);
  const std::vector<int64_t> held = blocks.ToVector();
  // Only the context's last block may be short, so that it is the last of its head's pages.
  const auto head_bytes =
      static_cast<size_t>(InputPages::SizeBytes(problem, 1, blocks.TokenCount(problem.kv_tokens)));
  const auto count = static_cast<int64_t>(held.size());
  const auto tokens_of = [&](int64_t block) {
    const int64_t begin = block * kBlockTokens;
    return TokenRange{begin, std::min(begin + kBlockTokens, problem.kv_tokens)};
  };
  // Where the i-th page begins, head by head.
  const auto offset_of = [&](int64_t i) {
    return static_cast<size_t>(i / count) * head_bytes +
           static_cast<size_t>((i % count) * kBlockTokens) * (k_row + v_row);
  };
  Buffer host(static_cast<size_t>(heads.count) * head_bytes);
  ThreadPool(threads).ParallelFor(heads.count * count, [&](int64_t i) {
    const int head = heads.first + static_cast<int>(i / count);
    const TokenRange tokens = tokens_of(held[static_cast<size_t>(i % count)]);
    std::byte* to = host.data() + offset_of(i);
    for (int64_t t = tokens.begin; t < tokens.end; ++t, to += k_row) {
      inputs.Fill(InputKind::kKey, head, t, problem.head_dim, problem.dtype, to);
    }
    if (problem.v_is_k_prefix) return;
    for (int64_t t = tokens.begin; t < tokens.end; ++t, to += v_row) {
      inputs.Fill(InputKind::kValue, head, t, problem.v_head_dim, problem.dtype, to);
    }
  });
  InputPages pages;
  ANNULUS_ASSIGN_OR_RETURN(pages.bytes, MovedTo(space, std::move(host)));
  pages.table = KvTable(problem.dtype, heads.first, heads.count, problem.head_dim,
                        problem.v_head_dim, BlocksOf(problem.kv_tokens));
  pages.table.set_memory(space.kind());
  for (int64_t i = 0; i < heads.count * count; ++i) {
    const int64_t block = held[static_cast<size_t>(i % count)];
    const std::byte* k = pages.bytes.data() + offset_of(i);
    KvPage page = {k, k, problem.head_dim, problem.head_dim};
    if (!problem.v_is_k_prefix) {
      page.v = k + static_cast<size_t>(tokens_of(block).size()) * k_row;
      page.v_row_stride = problem.v_head_dim;
    }
    pages.table.Set(heads.first + static_cast<int>(i / count), block, page);
  }
  return pages;
}

absl::StatusOr<InputQueries> MakeQueries(const Inputs& inputs, const Problem& problem,
                                         const std::vector<TokenRange>& ranges, MemorySpace& space,
                                         int threads) {
  std::vector<int64_t> positions;
  for (const TokenRange& range : ranges) {
    for (int64_t t = range.begin; t < range.end; ++t) positions.push_back(t);
  }
  const auto rows = static_cast<int64_t>(positions.size());
  const size_t row_bytes = RowBytes(problem, problem.head_dim);
  Buffer host(static_cast<size_t>(rows * problem.heads) * row_bytes);
  ThreadPool(threads).ParallelFor(rows, [&](int64_t row) {
    std::byte* to = host.data() + static_cast<size_t>(row * problem.heads) * row_bytes;
    for (int head = 0; head < problem.heads; ++head, to += row_bytes) {
      inputs.Fill(InputKind::kQuery, head, positions[static_cast<size_t>(row)], problem.head_dim,
                  problem.dtype, to);
    }
  });
  InputQueries queries;
  ANNULUS_ASSIGN_OR_RETURN(queries.bytes, MovedTo(space, std::move(host)));
  queries.view = TensorView::Contiguous(queries.bytes.data(), problem.dtype, rows, problem.heads,
                                        problem.head_dim);
  return queries;
}

}  // namespace annulus
