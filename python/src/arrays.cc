#include "python/src/arrays.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "python/src/errors.h"

namespace annulus::python {
namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;

std::optional<DType> DTypeOf(const nb::dlpack::dtype& dtype) {
  if (dtype.lanes != 1) return std::nullopt;
  if (dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && dtype.bits == 16) {
    return DType::kBF16;
  }
  if (dtype.code != static_cast<uint8_t>(nb::dlpack::dtype_code::Float)) return std::nullopt;
  if (dtype.bits == 32) return DType::kF32;
  if (dtype.bits == 16) return DType::kF16;
  return std::nullopt;
}

[[noreturn]] void Refuse(const char* field, const std::string& value, const char* expected) {
  Raise(absl::InvalidArgumentError(absl::StrCat(field, ": ", value, "; expected ", expected)));
}

std::string TextOf(nb::handle object) {
  return nb::cast<std::string>(nb::str(object));
}

// What others say of the shape of a tensor, "[4, 2, 64]".
std::string ShapeOf(const Array& array) {
  std::vector<size_t> shape(array.ndim());
  for (size_t i = 0; i < array.ndim(); ++i) shape[i] = array.shape(i);
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// Of a tensor that cannot be borrowed as it is: NumPy's bfloat16, a tensor with a gradient, one on
// a GPU. What annulus._arrays makes of it, and whether its 16-bit integers are bfloat16.
std::pair<nb::object, bool> ToHost(nb::handle tensor, const char* field) {
  const nb::object made = nb::module_::import_("annulus._arrays").attr("to_host")(tensor, field);
  return nb::cast<std::pair<nb::object, bool>>(made);
}

struct Taken {
  nb::object owner;
  Array array;
  bool bits = false;  // of bfloat16
};

Taken Take(nb::handle tensor, const char* field) {
  Taken taken{nb::borrow(tensor), {}, false};
  if (nb::try_cast<Array>(tensor, taken.array, /*convert=*/false)) return taken;
  PyErr_Clear();
  std::tie(taken.owner, taken.bits) = ToHost(tensor, field);
  if (!nb::try_cast<Array>(taken.owner, taken.array, /*convert=*/false)) {
    PyErr_Clear();
    Refuse(field, TextOf(tensor.type()), "an array with __dlpack__ or the buffer protocol");
  }
  return taken;
}

}  // namespace

Borrowed Borrow(nb::handle tensor, const char* field) {
  if (tensor.is_none()) return {};
  Taken taken = Take(tensor, field);
  const Array& array = taken.array;
  const std::optional<DType> dtype = taken.bits ? DType::kBF16 : DTypeOf(array.dtype());
  if (!dtype.has_value()) {
    Refuse(field, absl::StrCat("of ", TextOf(tensor.attr("dtype"))),
           "float32, float16 or bfloat16");
  }
  if (array.ndim() != 3) Refuse(field, ShapeOf(array), "[tokens, heads, dim]");
  if (array.stride(2) != 1 && array.shape(2) > 1) {
    Refuse(field, absl::StrCat("a last dimension with stride ", array.stride(2)),
           "a contiguous one");
  }
  const TensorView view{static_cast<const std::byte*>(array.data()),
                        *dtype,
                        static_cast<int64_t>(array.shape(0)),
                        static_cast<int64_t>(array.shape(1)),
                        static_cast<int64_t>(array.shape(2)),
                        array.stride(0),
                        array.stride(1)};
  return {std::move(taken.owner), std::move(taken.array), view};
}

nb::object ToNumpy(Tensor tensor, bool keep_dim) {
  auto* const held = new Tensor(std::move(tensor));
  const nb::capsule owner(held, [](void* of) noexcept { delete static_cast<Tensor*>(of); });
  const size_t shape[] = {static_cast<size_t>(held->tokens()), static_cast<size_t>(held->heads()),
                          static_cast<size_t>(held->dim())};
  const size_t dims = held->dim() == 1 && !keep_dim ? 2 : 3;
  return nb::cast(nb::ndarray<nb::numpy, float>(held->f32(), dims, shape, owner));
}

Tensor CopyF32(nb::handle tensor, const char* field, bool rows) {
  const Taken taken = Take(tensor, field);
  const Array& array = taken.array;
  if (taken.bits || DTypeOf(array.dtype()) != DType::kF32) {
    Refuse(field, absl::StrCat("of ", TextOf(tensor.attr("dtype"))), "float32");
  }
  const bool fits = array.ndim() == 3 || (rows && array.ndim() == 2);
  if (!fits) {
    Refuse(field, ShapeOf(array), rows ? "[tokens, heads]" : "[tokens, heads, dim]");
  }
  Tensor copy(DType::kF32, static_cast<int64_t>(array.shape(0)),
              static_cast<int64_t>(array.shape(1)),
              array.ndim() == 3 ? static_cast<int64_t>(array.shape(2)) : 1);
  const auto* const from = static_cast<const float*>(array.data());
  float* to = copy.f32();
  for (int64_t token = 0; token < copy.tokens(); ++token) {
    for (int64_t head = 0; head < copy.heads(); ++head) {
      for (int64_t c = 0; c < copy.dim(); ++c) {
        *to++ = from[token * array.stride(0) + head * array.stride(1) +
                     (array.ndim() == 3 ? c * array.stride(2) : 0)];
      }
    }
  }
  return copy;
}

}  // namespace annulus::python
