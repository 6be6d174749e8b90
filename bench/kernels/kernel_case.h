// One workload of the kernel benchmark: contexts of random KV in pages, as the store keeps them (K
// [64, dim] and V [64, dim] of one head together, a head's pages in a row), and the queries at
// their ends. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "attention/backend.h"
#include "attention/pattern.h"
#include "base/thread_pool.h"

namespace annulus {

struct KernelShape {
  std::string name;
  std::string pattern = "causal";
  DType dtype = DType::kF32;      // of q, k and v
  std::vector<int64_t> contexts;  // tokens of each
  int64_t q_tokens = 1;           // the last ones of each context
  int heads = 1;
  int kv_heads = 1;
  int dim = 128;  // head_dim and v_head_dim
  // What list(x) in the pattern shows of one context, as BindListed takes it.
  std::string listed = {};

  int64_t tokens() const;    // Σ contexts
  int64_t kv_bytes() const;  // K + V of all of them
};

class KernelCase {
 public:
  KernelCase(KernelShape shape, ThreadPool* pool);

  const KernelShape& shape() const { return shape_; }
  // Exact (query head, query, key) triples that the pattern allows, over all contexts; and those
  // computed, block edges included.
  const PairCount& pairs() const { return pairs_; }
  // 4·visited pairs·dim, a multiply-add counting 2.
  double flop() const { return 4.0 * static_cast<double>(pairs_.visited) * shape_.dim; }

  // K and V of the blocks that the queries of one block see.
  double read_bytes() const;

  // All pages.
  absl::Span<const std::byte> kv() const { return {kv_.data(), kv_.size_bytes()}; }

  // The seconds of one batched call, into poisoned outputs that were made the identity.
  double Run(Backend* backend);

  // After a run: max over sampled rows of ‖out − ref‖/‖ref‖ against float64 on the same (rounded)
  // inputs.
  double WorstError(ThreadPool* pool) const;

 private:
  struct Context {
    KvTable kv;
    BlockSet keys;
    Tensor q;
    Partial partial;
  };

  KernelShape shape_;
  Pattern pattern_;
  PairCount pairs_;
  Tensor kv_;  // [pages · 2 · 64, 1, dim], context after context
  std::vector<Context> contexts_;
  std::vector<AttendArgs> batch_;
};

}  // namespace annulus
