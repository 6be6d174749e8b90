// Tensors between Python and the library. What comes in is borrowed where it lies, strided too;
// what goes out is NumPy's and owns its bytes. To be used with the GIL held.
#pragma once

#include "annulus/tensor.h"
#include "python/src/nanobind.h"

namespace annulus::python {

// Makes NumPy known to this module. To be called before anything else of this header.
void ImportNumpy();

// Whether it is an array of NumPy's.
bool IsNumpy(nb::handle tensor);

// Memory that comes through __dlpack__ or the buffer protocol.
using Lender = nb::ndarray<nb::ro, nb::device::cpu>;

// A tensor of the caller's, which lives as long as this.
struct Borrowed {
  nb::object owner;
  Lender lender;
  TensorView view;
};

// Takes anything with __dlpack__ or the buffer protocol, [tokens, heads, dim] of float32, float16
// or bfloat16, read where it lies as long as its rows are contiguous and apart; anything else is
// copied. None is an empty view. Raises InvalidArgument naming `field`.
Borrowed Borrow(nb::handle tensor, const char* field);

// float32 [tokens, heads, dim], or [tokens, heads] where dim is 1 and not `keep_dim`.
nb::object ToNumpy(Tensor tensor, bool keep_dim);

// A copy of a tensor of float32 that comes as [tokens, heads, dim] or, where `rows`, [tokens,
// heads].
Tensor CopyF32(nb::handle tensor, const char* field, bool rows);

}  // namespace annulus::python
