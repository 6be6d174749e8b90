// All ranks of a plan in threads of one process, over the local exchange. Each rank has its own
// copy of the pages it holds, as a worker would, and of no others: a plan that forgets to send a
// page fails instead of reading it anyway. Thread-compatible: one Run at a time.
#pragma once

#include <atomic>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/engine/engine.h"

namespace annulus {

struct LocalRun {
  Partial result;           // [q_tokens, heads, v_head_dim], finalised
  int64_t bytes_moved = 0;  // payload counted at the exchange
  double compute_s = 0;     // of the rank that computed longest
  double wait_s = 0;        // of the same rank, for transfers
};

class LocalRanks {
 public:
  // Gives each rank of a Home::kOwners plan its rows of q [q_tokens, heads, head_dim] and its pages
  // of k [kv_tokens, kv_heads, head_dim] and v likewise (ignored when v_is_k_prefix), in the memory
  // that `backend` computes in. q of any dtype, k and v of the problem's, all in host memory. The
  // plan and the backend must outlive this. RESOURCE_EXHAUSTED where there is no room.
  static absl::StatusOr<LocalRanks> Create(const Plan& plan, const TensorView& q,
                                           const TensorView& k, const TensorView& v,
                                           Backend& backend);

  // INVALID_ARGUMENT names the first row and head that has no answer (attention/partial.h);
  // CANCELLED once *cancel is true.
  absl::StatusOr<LocalRun> Run(float scale, const std::atomic<bool>* cancel = nullptr) const;

 private:
  struct Rank {
    Buffer q_bytes;
    TensorView q;  // of q_bytes
    Buffer pages;
    KvTable table;
  };

  LocalRanks(const Plan& plan, Backend& backend) : plan_(&plan), backend_(&backend) {}

  const Plan* plan_;
  Backend* backend_;
  std::vector<Rank> ranks_;
};

}  // namespace annulus
