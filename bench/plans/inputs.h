// The inputs of a benchmark: rows of q, k and v that are a function of the seed, the head and the
// token, so that every rank makes its own and the oracle any, and nothing is moved before the
// clock runs. Values are uniform with mean 0 and variance 1, rounded to the problem's dtype.
// Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/kv_view.h"
#include "attention/tensor.h"
#include "base/buffer.h"
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

// The pages of KV heads `heads` and blocks `blocks`, ascending: as a worker would hold them, head
// by head, each page its K rows, then its V rows. Made with `threads` threads.
class InputPages {
 public:
  InputPages(const Inputs& inputs, const Problem& problem, HeadRange heads, const BlockSet& blocks,
             int threads);

  const KvTable& table() const { return table_; }
  // Of so many tokens, in bytes.
  static int64_t SizeBytes(const Problem& problem, int kv_heads, int64_t tokens);

 private:
  Buffer bytes_;
  KvTable table_;
};

// Queries of all heads at the positions `ranges`: [rows, heads, head_dim].
Tensor MakeQueries(const Inputs& inputs, const Problem& problem,
                   const std::vector<TokenRange>& ranges, int threads);

}  // namespace annulus
