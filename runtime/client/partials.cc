#include "annulus/partials.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/partial.h"
#include "base/status.h"

namespace annulus {
namespace {

std::string ShapeOf(const TensorView& tensor) {
  return absl::StrCat(Name(tensor.dtype), " [", tensor.tokens, ", ", tensor.heads, ", ", tensor.dim,
                      "]");
}

absl::Status Refuse(absl::string_view field, absl::string_view value, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, "; expected ", expected));
}

absl::Status CheckF32(absl::string_view field, const TensorView& tensor, int64_t tokens,
                      int64_t heads, int64_t dim) {
  if (tensor.dtype == DType::kF32 && tensor.tokens == tokens && tensor.heads == heads &&
      tensor.dim == dim && (tensor.data != nullptr || tensor.size() == 0)) {
    return absl::OkStatus();
  }
  return Refuse(field, ShapeOf(tensor), absl::StrCat("f32 [", tokens, ", ", heads, ", ", dim, "]"));
}

// exp(x) / (1 + exp(x)), without overflow.
float Sigmoid(float x) {
  const float small = std::exp(-std::fabs(x));
  return x < 0 ? small / (1 + small) : 1 / (1 + small);
}

PartialView ViewOf(Tensor* out, Tensor* lse) {
  return {out->f32(), lse->f32(), out->tokens(), out->heads(), out->dim()};
}

}  // namespace

absl::Status Merge(const TensorView& out, const TensorView& lse, Tensor* into_out,
                   Tensor* into_lse) {
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
  ANNULUS_RETURN_IF_ERROR(CheckF32("out", *out, out->tokens(), out->heads(), out->dim()));
  ANNULUS_RETURN_IF_ERROR(CheckF32("lse", *lse, out->tokens(), out->heads(), 1));
  if (static_cast<int64_t>(sinks.size()) != out->heads()) {
    return Refuse("number of sinks", absl::StrCat(sinks.size()),
                  absl::StrCat(out->heads(), ", one for each head"));
  }
  for (size_t head = 0; head < sinks.size(); ++head) {
    if (std::isfinite(sinks[head]) || sinks[head] == -std::numeric_limits<float>::infinity()) {
      continue;
    }
    return Refuse(absl::StrCat("sink of head ", head), absl::StrCat(sinks[head]),
                  "a finite number or -inf");
  }
  for (int64_t row = 0; row < out->tokens() * out->heads(); ++row) {
    const float sink = sinks[static_cast<size_t>(row % out->heads())];
    float& sum = lse->f32()[row];
    if (std::isinf(sink) || std::isnan(sum)) continue;
    const float kept = std::isinf(sum) ? 0 : Sigmoid(sum - sink);
    float* values = out->f32() + row * out->dim();
    for (int64_t c = 0; c < out->dim(); ++c) values[c] *= kept;
    sum =
        std::isinf(sum) ? sink : std::max(sum, sink) + std::log1p(std::exp(-std::fabs(sum - sink)));
  }
  return absl::OkStatus();
}

absl::Status Gate(const TensorView& gate, Tensor* out) {
  ANNULUS_RETURN_IF_ERROR(CheckF32("out", *out, out->tokens(), out->heads(), out->dim()));
  const bool by_head = gate.dim == 1;
  if (gate.tokens != out->tokens() || gate.heads != out->heads() ||
      (!by_head && gate.dim != out->dim()) || !IsKnown(gate.dtype)) {
    return Refuse("gate", ShapeOf(gate),
                  absl::StrCat("[", out->tokens(), ", ", out->heads(), ", ", out->dim(),
                               "], or 1 in the last place"));
  }
  std::vector<float> gates(static_cast<size_t>(gate.dim));
  for (int64_t token = 0; token < out->tokens(); ++token) {
    for (int64_t head = 0; head < out->heads(); ++head) {
      Convert(gate.Row(token, head), gate.dtype, reinterpret_cast<std::byte*>(gates.data()),
              DType::kF32, gate.dim);
      float* values = out->f32() + (token * out->heads() + head) * out->dim();
      for (int64_t c = 0; c < out->dim(); ++c) {
        values[c] *= Sigmoid(gates[by_head ? 0 : static_cast<size_t>(c)]);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace annulus
