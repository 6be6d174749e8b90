// What the functions over tensors in memory (annulus/partials.h, annulus/head_table.h) refuse, in
// the form of all errors. Thread-safe functions of values.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "annulus/tensor.h"

namespace annulus {

// INVALID_ARGUMENT.
absl::Status Refuse(absl::string_view field, absl::string_view value, absl::string_view expected);

// "f32 [tokens, heads, dim]".
std::string ShapeOf(const TensorView& tensor);

// INVALID_ARGUMENT where values have no place, or rows lie on each other or before the first.
absl::Status CheckMemory(absl::string_view field, const TensorView& tensor);

}  // namespace annulus
