// A problem whose tensors lie in the GPU's memory: random queries, and KV in pages of 64 tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/backend.h"
#include "base/cuda/handles.h"

namespace annulus {

struct GpuShape {
  int64_t tokens = 1 << 14;    // of each context; of all together with `ragged`
  int64_t q_tokens = 1 << 14;  // the last ones of each context
  int contexts = 1;
  bool ragged = false;     // lengths 1 : 2 : 3 : …, that sum to contexts · tokens
  bool outliers = false;   // one channel and some rows are larger than the others
  bool scattered = false;  // pages lie anywhere, not one after the other
  int heads = 32;
  int kv_heads = 8;
  int head_dim = 128;
  int v_head_dim = 0;   // 0: as head_dim
  bool latent = false;  // values are the first dims of the keys, not a memory of their own
  std::string pattern = "causal";
  std::string listed;  // what list(x) in the pattern shows, as BindListed takes it
  DType dtype = DType::kBF16;
};

class DeviceProblem {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceProblem>> Make(const GpuShape& shape);

  const std::vector<AttendArgs>& batch() const { return batch_; }
  // All outputs to the identity; poisoned where the identity may not stay.
  absl::Status Reset(cudaStream_t stream);

  // Floating point operations of the visited pairs.
  double flops() const {
    return 2.0 * static_cast<double>(visited_pairs_) * (shape_.head_dim + v_head_dim_);
  }
  int64_t visited_pairs() const { return visited_pairs_; }  // over query heads and contexts
  int64_t work_pairs() const { return work_pairs_; }
  int64_t kv_bytes() const { return kv_bytes_; }

  // The worst of `rows` random rows against float64: ‖err‖/‖ref‖ of out, and of lse.
  struct Errors {
    double out = 0;
    double lse = 0;
  };
  absl::StatusOr<Errors> Check(int rows);

 private:
  struct Context {
    int64_t tokens = 0;
    int64_t q_tokens = 0;
    size_t q_at = 0;  // in q_, bytes
    int64_t row_first = 0;
    KvTable kv;
  };

  explicit DeviceProblem(const GpuShape& shape, Pattern pattern)
      : shape_(shape),
        v_head_dim_(shape.v_head_dim == 0 ? shape.head_dim : shape.v_head_dim),
        pattern_(std::move(pattern)) {}
  // K and V of one block and head.
  size_t PageBytes() const;
  KvPage PageAt(const std::byte* page) const;
  absl::Status Allocate();
  void AddContext(int64_t tokens, int64_t first_page, int64_t pages);
  absl::StatusOr<KvTable> OnHost(const Context& context, int kv_head,
                                 std::vector<std::byte>* bytes);
  // The pattern of one query of one head, over a KV head's table; a word that chooses keys is given
  // those that it chooses on a CPU.
  absl::StatusOr<Pattern> PatternOf(const std::byte* q, int64_t position, const KvTable& kv,
                                    int64_t kv_tokens) const;

  GpuShape shape_;
  int v_head_dim_;
  Pattern pattern_;
  std::vector<Context> contexts_;
  std::vector<BlockSet> keys_;
  std::vector<AttendArgs> batch_;
  cuda::DeviceRoom q_, kv_, out_, lse_;
  int64_t rows_ = 0;  // of q over all contexts, times heads
  int64_t visited_pairs_ = 0;
  int64_t work_pairs_ = 0;
  int64_t kv_bytes_ = 0;
};

}  // namespace annulus
