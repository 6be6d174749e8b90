#include "bench/plans/inputs.h"

#include <array>
#include <utility>

#include "base/rng.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "runtime/engine/packed_pages.h"
#include "runtime/limits.h"

namespace annulus {
namespace {

// Of a uniform 16-bit integer to variance 1: √3 / 2^15.
constexpr float kStep = 1.7320508f / 32768;

}  // namespace

void Inputs::Fill(InputKind kind, int head, int64_t token, int64_t dim, DType dtype,
                  std::byte* to) const {
  // The product spreads neighbouring tokens over the seeds; Rng mixes what it is given.
  Rng rng(seed_ ^ (static_cast<uint64_t>(token) * 0x9e3779b97f4a7c15u) ^
          ((static_cast<uint64_t>(kind) << 16 | static_cast<uint64_t>(head)) << 44));
  std::array<float, kHeadDimMax + 4> row;
  for (size_t c = 0; c < static_cast<size_t>(dim); c += 4) {
    const uint64_t word = rng.Next();
    for (size_t i = 0; i < 4; ++i) {
      row[c + i] = kStep * static_cast<float>(static_cast<int16_t>(word >> (16 * i)));
    }
  }
  Convert(row.data(), DType::kF32, to, dtype, dim);
}

absl::StatusOr<InputPages> MakePages(const Inputs& inputs, const Problem& problem, HeadRange heads,
                                     const BlockSet& blocks, MemorySpace& space, int threads) {
  const size_t k_row = KRowBytes(problem);
  const size_t v_row = VRowBytes(problem);
  const std::vector<PackedPage> packed = PackedPagesOf(problem, heads, blocks);
  Buffer host(PackedBytes(problem, heads, blocks));
  ThreadPool(threads).ParallelFor(static_cast<int64_t>(packed.size()), [&](int64_t i) {
    const auto& [head, block, tokens, at] = packed[static_cast<size_t>(i)];
    std::byte* to = host.data() + at;
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
  pages.table = TableOf(problem, heads, blocks, pages.bytes.data(), space.kind());
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
  const size_t row_bytes = KRowBytes(problem);
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
