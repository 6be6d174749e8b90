#include "annulus/partials.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/finish.h"
#include "attention/partial.h"
#include "base/status.h"
#include "runtime/client/check_tensor.h"

namespace annulus {
namespace {

absl::Status CheckF32(absl::string_view field, const TensorView& tensor, int64_t tokens,
                      int64_t heads, int64_t dim) {
  if (tensor.dtype == DType::kF32 && tensor.tokens == tokens && tensor.heads == heads &&
      tensor.dim == dim) {
    return CheckMemory(field, tensor);
  }
  return Refuse(field, ShapeOf(tensor), absl::StrCat("f32 [", tokens, ", ", heads, ", ", dim, "]"));
}

absl::Status CheckGiven(absl::string_view field, const Tensor* tensor) {
  return tensor != nullptr ? absl::OkStatus() : Refuse(field, "null", "a tensor");
}

PartialView ViewOf(Tensor* out, Tensor* lse) {
  return {out->f32(), lse->f32(), out->tokens(), out->heads(), out->dim()};
}

// Without their lse.
PartialView RowsOf(Tensor* out) {
  return {out->f32(), nullptr, out->tokens(), out->heads(), out->dim()};
}

}  // namespace

absl::Status Merge(const TensorView& out, const TensorView& lse, Tensor* into_out,
                   Tensor* into_lse) {
  ANNULUS_RETURN_IF_ERROR(CheckGiven("into_out", into_out));
  ANNULUS_RETURN_IF_ERROR(CheckGiven("into_lse", into_lse));
  const TensorView into = *into_out;
  ANNULUS_RETURN_IF_ERROR(CheckF32("into_out", into, into.tokens, into.heads, into.dim));
  ANNULUS_RETURN_IF_ERROR(CheckF32("into_lse", *into_lse, into.tokens, into.heads, 1));
  ANNULUS_RETURN_IF_ERROR(CheckF32("out", out, into.tokens, into.heads, into.dim));
  ANNULUS_RETURN_IF_ERROR(CheckF32("lse", lse, into.tokens, into.heads, 1));
  std::vector<float> row(static_cast<size_t>(into.dim));
  const PartialView all = ViewOf(into_out, into_lse);
  for (int64_t token = 0; token < into.tokens; ++token) {
    for (int64_t head = 0; head < into.heads; ++head) {
      const int64_t at = token * into.heads + head;
      float from_lse = 0;
      Convert(out.Row(token, head), DType::kF32, reinterpret_cast<std::byte*>(row.data()),
              DType::kF32, into.dim);
      Convert(lse.Row(token, head), DType::kF32, reinterpret_cast<std::byte*>(&from_lse),
              DType::kF32, 1);
      Merge({all.out + at * into.dim, all.lse + at, 1, 1, into.dim},
            PartialView{row.data(), &from_lse, 1, 1, into.dim});
    }
  }
  return Finalise(all);
}

absl::Status WithSinks(absl::Span<const float> sinks, Tensor* out, Tensor* lse) {
  ANNULUS_RETURN_IF_ERROR(CheckGiven("out", out));
  ANNULUS_RETURN_IF_ERROR(CheckGiven("lse", lse));
  ANNULUS_RETURN_IF_ERROR(CheckF32("out", *out, out->tokens(), out->heads(), out->dim()));
  ANNULUS_RETURN_IF_ERROR(CheckF32("lse", *lse, out->tokens(), out->heads(), 1));
  if (sinks.empty()) {
    return Refuse("number of sinks", "0", absl::StrCat(out->heads(), ", one for each head"));
  }
  ANNULUS_RETURN_IF_ERROR(CheckSinks(sinks, out->heads()));
  AddSinks(sinks, ViewOf(out, lse));
  return absl::OkStatus();
}

absl::Status Gate(const TensorView& gate, Tensor* out) {
  ANNULUS_RETURN_IF_ERROR(CheckGiven("out", out));
  ANNULUS_RETURN_IF_ERROR(CheckF32("out", *out, out->tokens(), out->heads(), out->dim()));
  if (gate.tokens != out->tokens() || gate.heads != out->heads() ||
      (gate.dim != 1 && gate.dim != out->dim()) || !IsKnown(gate.dtype)) {
    return Refuse("gate", ShapeOf(gate),
                  absl::StrCat("[", out->tokens(), ", ", out->heads(), ", ", out->dim(),
                               "], or 1 in the last place"));
  }
  ANNULUS_RETURN_IF_ERROR(CheckMemory("gate", gate));
  GateRows(gate, RowsOf(out));
  return absl::OkStatus();
}

absl::Status Blend(absl::Span<const TensorView> parts, absl::Span<const TensorView> weights,
                   Tensor* out) {
  ANNULUS_RETURN_IF_ERROR(CheckGiven("out", out));
  const TensorView shape = *out;
  ANNULUS_RETURN_IF_ERROR(CheckF32("out", shape, shape.tokens, shape.heads, shape.dim));
  if (parts.empty() || weights.size() != parts.size()) {
    return Refuse("number of weights", absl::StrCat(weights.size()),
                  absl::StrCat("one for each of ", parts.size(), " parts, of which there is one"));
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    ANNULUS_RETURN_IF_ERROR(
        CheckF32(absl::StrCat("parts[", i, "]"), parts[i], shape.tokens, shape.heads, shape.dim));
    const TensorView& weight = weights[i];
    const bool fits = (weight.tokens == 1 || weight.tokens == shape.tokens) &&
                      weight.heads == shape.heads && (weight.dim == 1 || weight.dim == shape.dim);
    if (fits && IsKnown(weight.dtype)) {
      ANNULUS_RETURN_IF_ERROR(CheckMemory(absl::StrCat("weights[", i, "]"), weight));
      continue;
    }
    return Refuse(absl::StrCat("weights[", i, "]"), ShapeOf(weight),
                  absl::StrCat("[", shape.tokens, ", ", shape.heads, ", ", shape.dim,
                               "], or 1 in the first or last place"));
  }
  std::fill_n(out->f32(), shape.size(), 0.0f);
  for (size_t i = 0; i < parts.size(); ++i) AddWeighted(parts[i], weights[i], RowsOf(out));
  return absl::OkStatus();
}

}  // namespace annulus
