#include "attention/finish.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"

namespace annulus {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

// exp(x) / (1 + exp(x)), without overflow.
float Sigmoid(float x) {
  const float small = std::exp(-std::fabs(x));
  return x < 0 ? small / (1 + small) : 1 / (1 + small);
}

// The f32 values of a tensor's row.
void ReadRow(const TensorView& tensor, int64_t row, int64_t head, std::vector<float>* values) {
  values->resize(static_cast<size_t>(tensor.dim));
  Convert(tensor.Row(row, head), tensor.dtype, reinterpret_cast<std::byte*>(values->data()),
          DType::kF32, tensor.dim);
}

}  // namespace

absl::Status CheckSinks(absl::Span<const float> sinks, int64_t heads) {
  if (sinks.empty()) return absl::OkStatus();
  if (static_cast<int64_t>(sinks.size()) != heads) {
    return absl::InvalidArgumentError(absl::StrCat("number of sinks: ", sinks.size(), "; expected ",
                                                   heads, ", one for each head"));
  }
  for (size_t head = 0; head < sinks.size(); ++head) {
    if (std::isfinite(sinks[head]) || sinks[head] == kNothing) continue;
    return absl::InvalidArgumentError(absl::StrCat("sink of head ", head, ": ", sinks[head],
                                                   "; expected a finite number or -inf"));
  }
  return absl::OkStatus();
}

void AddSinks(absl::Span<const float> sinks, PartialView rows) {
  if (sinks.empty()) return;
  for (int64_t r = 0; r < rows.rows * rows.heads; ++r) {
    const float sink = sinks[static_cast<size_t>(r % rows.heads)];
    float& sum = rows.lse[r];
    if (std::isinf(sink) || std::isnan(sum)) continue;
    if (sum == kNothing) {
      sum = sink;  // out is 0
      continue;
    }
    const float kept = Sigmoid(sum - sink);
    float* values = rows.out + r * rows.v_head_dim;
    for (int64_t c = 0; c < rows.v_head_dim; ++c) values[c] *= kept;
    sum = std::max(sum, sink) + std::log1p(std::exp(-std::fabs(sum - sink)));
  }
}

void GateRows(const TensorView& gate, PartialView rows) {
  std::vector<float> gates;
  for (int64_t row = 0; row < rows.rows; ++row) {
    for (int64_t head = 0; head < rows.heads; ++head) {
      ReadRow(gate, row, head, &gates);
      float* out = rows.out + (row * rows.heads + head) * rows.v_head_dim;
      for (int64_t c = 0; c < rows.v_head_dim; ++c) {
        out[c] *= Sigmoid(gates[gate.dim == 1 ? 0 : static_cast<size_t>(c)]);
      }
    }
  }
}

void AddWeighted(const TensorView& part, const TensorView& weight, PartialView rows) {
  std::vector<float> values, weights;
  for (int64_t row = 0; row < rows.rows; ++row) {
    for (int64_t head = 0; head < rows.heads; ++head) {
      ReadRow(part, row, head, &values);
      ReadRow(weight, weight.tokens == 1 ? 0 : row, head, &weights);
      float* out = rows.out + (row * rows.heads + head) * rows.v_head_dim;
      for (int64_t c = 0; c < rows.v_head_dim; ++c) {
        const auto at = static_cast<size_t>(c);
        out[c] += weights[weight.dim == 1 ? 0 : at] * values[at];
      }
    }
  }
}

}  // namespace annulus
