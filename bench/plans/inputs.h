// The inputs of a benchmark: rows of q, k and v that are a function of the seed, the head and the
// token, so that every rank makes its own and the oracle any, and nothing is moved before the
// clock runs. Values are uniform with mean 0 and variance 1, rounded to the problem's dtype.
// Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "annulus/buffer.h"
#include "annulus/tensor.h"
#include "attention/kv_view.h"
#include "attention/memory_space.h"
#include "sharding/plan.h"

namespace annulus {

enum class InputKind { kQuery, kKey, kValue };

class Inputs {
 public:
  explicit Inputs(uint64_t seed) : seed_(seed) {}

  // One row of `dim` values of `dtype`; `head` is a query head for kQuery, else a KV head.
  void Fill(InputKind kind, int head, int64_t token, int64_t dim, DType dtype, std::byte* to) const;

 private:
  const uint64_t seed_;
};

// What is made for a rank, in the memory space `space`, with `threads` threads. Errors are those of
// the space.
struct InputPages {
  Buffer bytes;
  KvTable table;
};

// The pages of KV heads `heads` and blocks `blocks`, ascending: as a worker would hold them, head
// by head, each page its K rows, then its V rows.
absl::StatusOr<InputPages> MakePages(const Inputs& inputs, const Problem& problem, HeadRange heads,
                                     const BlockSet& blocks, MemorySpace& space, int threads);

struct InputQueries {
  Buffer bytes;
  TensorView view;
};

// Queries of all heads at the positions `ranges`: [rows, heads, head_dim].
absl::StatusOr<InputQueries> MakeQueries(const Inputs& inputs, const Problem& problem,
                                         const std::vector<TokenRange>& ranges, MemorySpace& space,
                                         int threads);

}  // namespace annulus
