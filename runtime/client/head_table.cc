#include "annulus/head_table.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/client/check_tensor.h"
#include "runtime/limits.h"

namespace annulus {
namespace {

constexpr int kTableHeadsMax = 1024;  // K or V heads

absl::Status CheckCount(absl::string_view field, int64_t count, int64_t max) {
  if (count >= 1 && count <= max) return absl::OkStatus();
  return Refuse(field, absl::StrCat(count), absl::StrCat("1 to ", max));
}

absl::Status CheckTable(absl::string_view field, absl::Span<const int> heads, int count) {
  for (size_t i = 0; i < heads.size(); ++i) {
    if (heads[i] < 0 || heads[i] >= count) {
      return Refuse(absl::StrCat(field, "[", i, "]"), absl::StrCat(heads[i]),
                    absl::StrCat("0 to ", count - 1));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckShape(absl::string_view field, const TensorView& tensor, int64_t tokens,
                        int64_t heads, int64_t parts) {
  const bool fits = tensor.tokens == tokens && tensor.heads == heads && tensor.dim >= 1 &&
                    tensor.dim % parts == 0;
  if (fits) return CheckMemory(field, tensor);
  return Refuse(field, absl::StrCat("[", tensor.tokens, ", ", tensor.heads, ", ", tensor.dim, "]"),
                absl::StrCat("[", tokens, ", ", heads, ", ",
                             parts > 1 ? absl::StrCat("a multiple of ", parts) : "dim", "]"));
}

absl::StatusOr<TensorView> SideBySide(absl::string_view field, const TensorView& tensor, int heads,
                                      int parts) {
  ANNULUS_RETURN_IF_ERROR(CheckShape(field, tensor, tensor.tokens, heads, 1));
  if (parts > 1 && tensor.head_stride != tensor.dim) {
    return Refuse(absl::StrCat("stride of ", field, "'s heads"), absl::StrCat(tensor.head_stride),
                  absl::StrCat(tensor.dim, ": heads side by side"));
  }
  TensorView wide = tensor;
  wide.heads = heads / parts;
  wide.dim = tensor.dim * parts;
  wide.head_stride = tensor.head_stride * parts;
  return wide;
}

}  // namespace

absl::StatusOr<HeadTable> HeadTable::Of(absl::Span<const int> k_of_query, int k_heads,
                                        absl::Span<const int> v_of_query, int v_heads) {
  ANNULUS_RETURN_IF_ERROR(CheckCount("query heads", std::ssize(k_of_query), kHeadsMax));
  ANNULUS_RETURN_IF_ERROR(CheckCount("k_heads", k_heads, kTableHeadsMax));
  ANNULUS_RETURN_IF_ERROR(CheckCount("v_heads", v_heads, kTableHeadsMax));
  if (v_of_query.size() != k_of_query.size()) {
    return Refuse("number of v_of_query", absl::StrCat(v_of_query.size()),
                  absl::StrCat(k_of_query.size(), ", one for each query head"));
  }
  HeadTable table;
  table.k_heads_ = k_heads;
  table.v_heads_ = v_heads;
  const int kv_heads = std::min(k_heads, v_heads);
  if (std::max(k_heads, v_heads) % kv_heads != 0) {
    return Refuse("v_heads", absl::StrCat(v_heads),
                  absl::StrCat("a multiple of k_heads ", k_heads, ", or one that divides it"));
  }
  ANNULUS_RETURN_IF_ERROR(CheckTable("k_of_query", k_of_query, k_heads));
  ANNULUS_RETURN_IF_ERROR(CheckTable("v_of_query", v_of_query, v_heads));
  table.k_parts_ = k_heads / kv_heads;
  table.v_parts_ = v_heads / kv_heads;
  std::vector<int> places(static_cast<size_t>(kv_heads));
  for (size_t i = 0; i < k_of_query.size(); ++i) {
    const int head = k_of_query[i] / table.k_parts_;
    const int first = head * table.v_parts_;
    if (v_of_query[i] / table.v_parts_ != head) {
      const int last = first + table.v_parts_ - 1;
      return Refuse(absl::StrCat("v_of_query[", i, "]"), absl::StrCat(v_of_query[i]),
                    absl::StrCat(first, " to ", last, ", beside K head ", k_of_query[i]));
    }
    const int place = places[static_cast<size_t>(head)]++;
    table.rows_.push_back({place, k_of_query[i] % table.k_parts_, v_of_query[i] - first});
  }
  table.places_ = *std::max_element(places.begin(), places.end());
  for (size_t i = 0; i < k_of_query.size(); ++i) {
    table.rows_[i].head += k_of_query[i] / table.k_parts_ * table.places_;
  }
  ANNULUS_RETURN_IF_ERROR(CheckCount("heads of the context", table.heads(), kHeadsMax));
  return table;
}

absl::StatusOr<Tensor> HeadTable::Queries(const TensorView& q) const {
  ANNULUS_RETURN_IF_ERROR(CheckShape("q", q, q.tokens, std::ssize(rows_), 1));
  Tensor spread(DType::kF32, q.tokens, heads(), q.dim * k_parts_);
  for (int64_t token = 0; token < q.tokens; ++token) {
    for (size_t i = 0; i < rows_.size(); ++i) {
      float* row = spread.f32() + (token * heads() + rows_[i].head) * spread.dim();
      Convert(q.Row(token, static_cast<int64_t>(i)), q.dtype,
              reinterpret_cast<std::byte*>(row + rows_[i].k_part * q.dim), DType::kF32, q.dim);
    }
  }
  return spread;
}

absl::StatusOr<TensorView> HeadTable::Keys(const TensorView& k) const {
  return SideBySide("k", k, k_heads_, k_parts_);
}

absl::StatusOr<TensorView> HeadTable::Values(const TensorView& v) const {
  return SideBySide("v", v, v_heads_, v_parts_);
}

absl::StatusOr<HeadTable::Answer> HeadTable::Answers(const TensorView& out,
                                                     const TensorView& lse) const {
  ANNULUS_RETURN_IF_ERROR(CheckShape("out", out, out.tokens, heads(), v_parts_));
  ANNULUS_RETURN_IF_ERROR(CheckShape("lse", lse, out.tokens, heads(), 1));
  if (out.dtype != DType::kF32 || lse.dtype != DType::kF32 || lse.dim != 1) {
    return Refuse("out, lse",
                  absl::StrCat(Name(out.dtype), ", ", Name(lse.dtype), " of ", lse.dim, " a head"),
                  "f32, and f32 of 1 a head");
  }
  const int64_t dim = out.dim / v_parts_;
  const auto heads = std::ssize(rows_);
  Answer answer{Tensor(DType::kF32, out.tokens, heads, dim),
                Tensor(DType::kF32, out.tokens, heads, 1)};
  for (int64_t token = 0; token < out.tokens; ++token) {
    for (int64_t i = 0; i < heads; ++i) {
      const Row& row = rows_[static_cast<size_t>(i)];
      const auto* values = reinterpret_cast<const float*>(out.Row(token, row.head));
      std::memcpy(answer.out.f32() + (token * heads + i) * dim, values + row.v_part * dim,
                  static_cast<size_t>(dim) * sizeof(float));
      std::memcpy(answer.lse.f32() + token * heads + i, lse.Row(token, row.head), sizeof(float));
    }
  }
  return answer;
}

}  // namespace annulus
