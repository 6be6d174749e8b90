// A small attention problem with random inputs and its float64 answer, row by row: what backends
// are compared with. Inputs lie in NHD tensors, poisoned beyond the context's end.
#pragma once

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "attention/backend.h"
#include "attention/reference/reference.h"
#include "base/rng.h"
#include "tests/catch.h"

namespace annulus {

struct ProblemShape {
  std::string pattern = "causal";
  DType dtype = DType::kF32;
  DType q_dtype = DType::kF32;
  int kv_heads = 2;
  int group = 1;
  int head_dim = 16;
  int v_head_dim = 16;
  bool v_is_k_prefix = false;
  int64_t kv_tokens = 100;
  std::vector<TokenRange> q_ranges;  // empty: all
  HeadRange heads;                   // count 0: all
  float spread = 1.0f;               // standard deviation of q

  std::string ToString() const {
    std::string text = pattern + " " + std::string(Name(dtype)) + " q " +
                       std::string(Name(q_dtype)) + " kv_heads " + std::to_string(kv_heads) +
                       " group " + std::to_string(group) + " d " + std::to_string(head_dim) + "/" +
                       std::to_string(v_head_dim) + " kv " + std::to_string(kv_tokens) + " heads " +
                       std::to_string(heads.first) + "+" + std::to_string(heads.count) + " q";
    for (const TokenRange& range : q_ranges) {
      text += " [" + std::to_string(range.begin) + ", " + std::to_string(range.end) + ")";
    }
    return text;
  }
};

class Problem {
 public:
  Problem(ProblemShape shape, uint64_t seed)
      : shape_(std::move(shape)), pattern_(*Pattern::Parse(shape_.pattern, shape_.kv_heads)) {
    if (shape_.q_ranges.empty()) shape_.q_ranges = {{0, shape_.kv_tokens}};
    if (shape_.heads.count == 0) shape_.heads = {0, shape_.kv_heads * shape_.group};
    Rng rng(seed);
    int64_t rows = 0;
    for (const TokenRange& range : shape_.q_ranges) rows += range.size();
    const int64_t room = BlocksOf(shape_.kv_tokens) * kBlockTokens;
    q_ = Random(&rng, shape_.q_dtype, rows, rows, shape_.heads.count, shape_.head_dim,
                shape_.spread);
    k_ = Random(&rng, shape_.dtype, room, shape_.kv_tokens, shape_.kv_heads, shape_.head_dim, 1);
    v_ = Random(&rng, shape_.dtype, room, shape_.kv_tokens, shape_.kv_heads, shape_.v_head_dim, 1);
    TensorView v = v_;
    if (shape_.v_is_k_prefix) {
      v = k_;
      v.dim = shape_.v_head_dim;
    }
    kv_ = KvTable::FromTensors(k_, v);
    all_ = BlockSet::Range(0, BlocksOf(shape_.kv_tokens));
  }

  // What list(name) of the pattern means.
  void Bind(const NamedList& list) {
    pattern_ = *pattern_.Bind({&list, 1}, shape_.kv_heads * shape_.group);
  }

  const ProblemShape& shape() const { return shape_; }
  const KvTable& kv() const { return kv_; }
  KvTable* mutable_kv() { return &kv_; }
  const Pattern& pattern() const { return pattern_; }
  const BlockSet& all() const { return all_; }
  TensorView q() const { return q_; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }

  Partial Identity() const { return Partial(q_.tokens(), q_.heads(), shape_.v_head_dim); }

  AttendArgs Args(const BlockSet* keys, Partial* into) const {
    AttendArgs args;
    args.q = q_;
    args.q_ranges = shape_.q_ranges;
    args.heads = shape_.heads;
    args.kv_tokens = shape_.kv_tokens;
    args.group = shape_.group;
    args.kv = &kv_;
    args.pattern = &pattern_;
    args.keys = keys;
    args.scale = scale();
    args.into = into->view();
    return args;
  }

  // The float64 answers of all rows, [rows, heads].
  std::vector<ReferenceAnswer> Oracle() const {
    std::vector<ReferenceAnswer> answers;
    int64_t row = 0;
    for (const TokenRange& range : shape_.q_ranges) {
      for (int64_t position = range.begin; position < range.end; ++position, ++row) {
        for (int head = 0; head < shape_.heads.count; ++head) {
          const int of_group = (shape_.heads.first + head) % shape_.group;
          answers.push_back(*ReferenceRow(q_.view().Row(row, head), shape_.q_dtype, kv_,
                                          shape_.kv_tokens, pattern_.Member(of_group),
                                          (shape_.heads.first + head) / shape_.group, position,
                                          scale()));
        }
      }
    }
    return answers;
  }

 private:
  static Tensor Random(Rng* rng, DType dtype, int64_t room, int64_t tokens, int64_t heads,
                       int64_t dim, float spread) {
    Tensor tensor(dtype, room, heads, dim);
    for (int64_t i = 0; i < room * heads * dim; ++i) {
      const float x = i < tokens * heads * dim ? spread * rng->Normal() : std::nanf("");
      Convert(&x, DType::kF32, tensor.data() + static_cast<size_t>(i) * SizeOf(dtype), dtype, 1);
    }
    return tensor;
  }

  ProblemShape shape_;
  Pattern pattern_;
  Tensor q_;
  Tensor k_;
  Tensor v_;
  KvTable kv_;
  BlockSet all_;
};

// ‖a − b‖/‖b‖ of one row.
inline double RelativeError(const float* a, const std::vector<double>& b) {
  double wrong = 0;
  double size = 0;
  for (size_t c = 0; c < b.size(); ++c) {
    wrong += (a[c] - b[c]) * (a[c] - b[c]);
    size += b[c] * b[c];
  }
  return std::sqrt(wrong / size);
}

// ‖out − ref‖/‖ref‖ that a backend may have. Inputs are compared as stored, so that it is that of
// f32, but where queries and KV are bf16: there a kernel may round the weights,
// by 2⁻⁹ each, which shows where values cancel. A GPU's matrix units do so for f16, by 2⁻¹².
inline double OutTolerance(const Backend& backend, const ProblemShape& shape) {
  if (shape.dtype == DType::kF32 || shape.q_dtype != shape.dtype) return 1e-5;
  if (shape.dtype == DType::kBF16) return 1e-2;
  return backend.capabilities().name == "cuda" ? 1.25e-3 : 1e-5;
}

// Sums, and so lse, are of f32 for all dtypes.
inline void CheckAgainst(const std::vector<ReferenceAnswer>& oracle, double out_tolerance,
                         Partial* partial, double lse_tolerance = 1e-5) {
  const PartialView got = partial->view();
  REQUIRE(oracle.size() == static_cast<size_t>(got.rows * got.heads));
  for (size_t i = 0; i < oracle.size(); ++i) {
    INFO("row " << i / static_cast<size_t>(got.heads) << " head "
                << i % static_cast<size_t>(got.heads));
    const float* out = got.out + static_cast<int64_t>(i) * got.v_head_dim;
    if (std::isinf(oracle[i].lse)) {
      REQUIRE(got.lse[i] == -std::numeric_limits<float>::infinity());
      for (int64_t c = 0; c < got.v_head_dim; ++c) REQUIRE(out[c] == 0);
      continue;
    }
    REQUIRE(std::abs(got.lse[i] - oracle[i].lse) <= lse_tolerance);
    REQUIRE(RelativeError(out, oracle[i].out) <= out_tolerance);
  }
}

}  // namespace annulus
