// annulus.Answer, which queries are answered with: a tuple of out and lse, with more as attributes.
// To be used with the GIL held.
#pragma once

#include "annulus/tensor.h"
#include "python/src/nanobind.h"

namespace annulus::python {

// What stands beside out and lse; None where the call has none.
struct AnswerExtras {
  nb::object epoch = nb::none();
  nb::object stats = nb::none();
  nb::object trace = nb::none();
  nb::object tokens = nb::none();
};

// out [n, heads, v_head_dim] and lse [n, heads, 1], both f32, as the kind of array that `q` is, out
// in `out_dtype` (None: f32). Both are None where out is empty. Raises InvalidArgument naming
// out_dtype.
nb::object AnswerOf(nb::handle q, nb::handle out_dtype, Tensor out, Tensor lse,
                    AnswerExtras extras);

void AddAnswer(nb::module_& module);

}  // namespace annulus::python
