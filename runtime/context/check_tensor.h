// What a caller's tensor must be before anything is done with it. Pure functions.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "annulus/tensor.h"
#include "annulus/types.h"

namespace annulus {

// INVALID_ARGUMENT names the tensor, what is wrong and what was expected, unless it is of shape
// [tokens ≥ 1, heads, dim], has a known dtype and data, and every value is finite and stays so when
// rounded to `stored`. A value that is not would spoil every answer that sees it.
absl::Status CheckTensor(absl::string_view name, const TensorView& tensor, int64_t heads,
                         int64_t dim, DType stored);

// The part of it that needs no data: whether such a tensor can be one of these.
absl::Status CheckShape(absl::string_view name, const TensorView& tensor, int64_t heads,
                        int64_t dim);

// The same of what is appended to a context: INVALID_ARGUMENT names the tensor that does not fit.
absl::Status CheckKv(const ContextSpec& spec, const TensorView& k, const TensorView& v);

absl::Status CheckKvShapes(const ContextSpec& spec, const TensorView& k, const TensorView& v);

// INVALID_ARGUMENT for a tensor, of a known dtype or none, of more bytes than one call may bring.
absl::Status CheckBytes(absl::string_view name, const TensorView& tensor, int64_t bytes_max);

}  // namespace annulus
