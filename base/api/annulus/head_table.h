// HeadTable: attention whose query heads share K heads by a table, evenly or not (KDGQA,
// 2408.08454), or that has more V heads than K heads or fewer (DiffQKV, 2501.13629), by a context
// that knows neither. A context has one V head for each K head, and as many query heads for each:
//
//   kv_heads    the smaller of the numbers of K heads and V heads; where there are m times as many
//               of the others, m of those lie side by side in one head m times as wide
//   heads       kv_heads times the most query heads that share one; places that are left over hold
//               zeros, and their answers are dropped
//
// So KV takes the bytes that its heads have, and answers are those of the table exactly. A query of
// a wider K head is zero beside its own. Scores are still divided by √head_dim of one head: calls
// give `scale`. Patterns' rules by head are those of the context's KV heads, and sinks join after
// Answers (partials.h). Immutable, thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "annulus/tensor.h"

namespace annulus {

class HeadTable {
 public:
  struct Answer {
    Tensor out;  // f32 [n, query heads of the table, v_head_dim]
    Tensor lse;  // f32 [n, query heads of the table, 1]
  };

  // Query head h reads K head k_of_query[h] of k_heads and V head v_of_query[h] of v_heads, both in
  // one head of the context. INVALID_ARGUMENT names what is no table: fewer than 1 or more than
  // 4096 query heads or 1024 K or V heads, neither number of which is a multiple of the other.
  static absl::StatusOr<HeadTable> Of(absl::Span<const int> k_of_query, int k_heads,
                                      absl::Span<const int> v_of_query, int v_heads);

  // For the context's spec, whose dims are these many times those of one head.
  int heads() const { return kv_heads() * places_; }
  int kv_heads() const { return k_heads_ / k_parts_; }
  int k_parts() const { return k_parts_; }
  int v_parts() const { return v_parts_; }

  // q [n, query heads of the table, head_dim] of any dtype as the context's f32
  // [n, heads(), head_dim · k_parts()].
  absl::StatusOr<Tensor> Queries(const TensorView& q) const;
  // k [n, k_heads, head_dim] as the context's [n, kv_heads(), head_dim · k_parts()]: the same
  // bytes. INVALID_ARGUMENT: its heads do not lie side by side. Of v alike.
  absl::StatusOr<TensorView> Keys(const TensorView& k) const;
  absl::StatusOr<TensorView> Values(const TensorView& v) const;
  // The context's out, f32 [n, heads(), v_head_dim · v_parts()], and lse, f32 [n, heads(), 1], as
  // the table's.
  absl::StatusOr<Answer> Answers(const TensorView& out, const TensorView& lse) const;

 private:
  struct Row {
    int head = 0;    // of the context
    int k_part = 0;  // of that head
    int v_part = 0;
  };

  HeadTable() = default;

  int k_heads_ = 0;
  int v_heads_ = 0;
  int k_parts_ = 1;
  int v_parts_ = 1;
  int places_ = 1;         // query heads of each KV head
  std::vector<Row> rows_;  // by query head of the table
};

}  // namespace annulus
