#include "python/src/arrays.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "python/src/errors.h"

#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#include <numpy/arrayobject.h>

namespace annulus::python {
namespace {

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

// A tensor as it lies in the host's memory, which `owner` or, for others than NumPy, `lender`
// keeps.
struct Lent {
  nb::object owner;
  Lender lender;
  const std::byte* data = nullptr;
  std::optional<DType> dtype;  // none that the library has: nullopt
  absl::InlinedVector<int64_t, 3> shape;
  absl::InlinedVector<int64_t, 3> strides;  // elements
};

// "[4, 2, 64]".
std::string ShapeOf(const Lent& lent) {
  return absl::StrCat("[", absl::StrJoin(lent.shape, ", "), "]");
}

// NumPy's arrays are read as NumPy's own C code does, which costs least. False for an array whose
// elements do not lie as the machine's own do.
bool FromNumpy(PyArrayObject* array, Lent* lent) {
  if (!PyArray_ISBEHAVED_RO(array)) return false;
  lent->data = reinterpret_cast<const std::byte*>(PyArray_BYTES(array));
  const int type = PyArray_TYPE(array);
  if (type == NPY_FLOAT32) lent->dtype = DType::kF32;
  if (type == NPY_FLOAT16) lent->dtype = DType::kF16;
  for (int i = 0; i < PyArray_NDIM(array); ++i) {
    lent->shape.push_back(PyArray_DIM(array, i));
    lent->strides.push_back(PyArray_STRIDE(array, i) / PyArray_ITEMSIZE(array));
    if (PyArray_STRIDE(array, i) % PyArray_ITEMSIZE(array) != 0) return false;
  }
  return true;
}

// Anything with __dlpack__ or the buffer protocol.
bool FromOthers(nb::handle tensor, Lent* lent) {
  if (!nb::try_cast<Lender>(tensor, lent->lender, /*convert=*/false)) {
    PyErr_Clear();
    return false;
  }
  const Lender& array = lent->lender;
  lent->data = static_cast<const std::byte*>(array.data());
  lent->dtype = DTypeOf(array.dtype());
  for (size_t i = 0; i < array.ndim(); ++i) {
    lent->shape.push_back(static_cast<int64_t>(array.shape(i)));
    lent->strides.push_back(array.stride(i));
  }
  return true;
}

// Of torch's tensors, which lend themselves nevertheless.
bool WantsGradient(nb::handle tensor) {
  return nb::getattr(tensor, "requires_grad", nb::none()).is(nb::handle(Py_True));
}

bool From(nb::handle tensor, Lent* lent) {
  lent->owner = nb::borrow(tensor);
  if (!IsNumpy(tensor)) return !WantsGradient(tensor) && FromOthers(tensor, lent);
  return FromNumpy(reinterpret_cast<PyArrayObject*>(tensor.ptr()), lent);
}

// Whether each row is contiguous and has a place of its own, in ascending order of memory along
// every dimension: not where a tensor is reversed or broadcast.
bool HasRowsApart(const Lent& lent) {
  const auto is_none = [](int64_t size) { return size == 0; };
  if (absl::c_any_of(lent.shape, is_none)) return true;
  if (!lent.shape.empty() && lent.shape.back() > 1 && lent.strides.back() != 1) return false;
  if (lent.shape.size() < 2) return true;
  for (size_t i = 0; i + 1 < lent.shape.size(); ++i) {
    if (lent.shape[i] > 1 && lent.strides[i] < lent.shape.back()) return false;
  }
  return true;
}

nb::module_ Arrays() {
  return nb::module_::import_("annulus._arrays");
}

// A tensor that cannot be borrowed as it is: NumPy's bfloat16, a tensor with a gradient, one on
// a GPU, one whose rows overlap or are not contiguous. What annulus._arrays makes of it, and
// whether its 16-bit integers are bfloat16.
std::pair<nb::object, bool> ToHost(nb::handle tensor, const char* field) {
  return nb::cast<std::pair<nb::object, bool>>(Arrays().attr("to_host")(tensor, field));
}

Lent Take(nb::handle tensor, const char* field) {
  Lent lent;
  if (From(tensor, &lent) && lent.dtype.has_value() && HasRowsApart(lent)) return lent;
  lent = {};
  const auto [host, bits] = ToHost(tensor, field);
  bool is_lent = From(host, &lent);
  if (is_lent && !HasRowsApart(lent)) {
    lent = {};
    is_lent = From(Arrays().attr("packed")(host), &lent);
  }
  if (!is_lent) {
    Refuse(field, TextOf(tensor.type()),
           IsNumpy(host) ? "one that is aligned and has the machine's byte order"
                         : "an array with __dlpack__ or the buffer protocol");
  }
  if (bits) lent.dtype = DType::kBF16;
  if (!lent.dtype.has_value()) {
    Refuse(field, absl::StrCat("of ", TextOf(tensor.attr("dtype"))),
           "float32, float16 or bfloat16");
  }
  return lent;
}

}  // namespace

void ImportNumpy() {
  if (PyArray_ImportNumPyAPI() != 0) nb::raise_python_error();
}

bool IsNumpy(nb::handle tensor) {
  return PyArray_Check(tensor.ptr());
}

Borrowed Borrow(nb::handle tensor, const char* field) {
  if (tensor.is_none()) return {};
  Lent lent = Take(tensor, field);
  if (lent.shape.size() != 3) Refuse(field, ShapeOf(lent), "[tokens, heads, dim]");
  const TensorView view{lent.data,     *lent.dtype,     lent.shape[0],  lent.shape[1],
                        lent.shape[2], lent.strides[0], lent.strides[1]};
  return {std::move(lent.owner), std::move(lent.lender), view};
}

nb::object ToNumpy(Tensor tensor, bool keep_dim) {
  auto* const held = new Tensor(std::move(tensor));
  const nb::capsule owner(held, [](void* of) noexcept { delete static_cast<Tensor*>(of); });
  const npy_intp shape[] = {held->tokens(), held->heads(), held->dim()};
  const int dims = held->dim() == 1 && !keep_dim ? 2 : 3;
  const auto made = nb::steal(PyArray_SimpleNewFromData(dims, shape, NPY_FLOAT32, held->f32()));
  auto* const array = reinterpret_cast<PyArrayObject*>(made.ptr());
  if (array == nullptr || PyArray_SetBaseObject(array, owner.inc_ref().ptr()) != 0) {
    nb::raise_python_error();
  }
  return made;
}

Tensor CopyF32(nb::handle tensor, const char* field, bool rows) {
  Lent lent = Take(tensor, field);
  if (lent.dtype != DType::kF32) {
    Refuse(field, absl::StrCat("of ", TextOf(tensor.attr("dtype"))), "float32");
  }
  const bool fits = lent.shape.size() == 3 || (rows && lent.shape.size() == 2);
  if (!fits) {
    Refuse(field, ShapeOf(lent), rows ? "[tokens, heads]" : "[tokens, heads, dim]");
  }
  lent.shape.resize(3, 1);
  lent.strides.resize(3, 0);
  Tensor copy(DType::kF32, lent.shape[0], lent.shape[1], lent.shape[2]);
  const auto* const from = reinterpret_cast<const float*>(lent.data);
  float* to = copy.f32();
  for (int64_t token = 0; token < copy.tokens(); ++token) {
    for (int64_t head = 0; head < copy.heads(); ++head) {
      for (int64_t c = 0; c < copy.dim(); ++c) {
        *to++ = from[token * lent.strides[0] + head * lent.strides[1] + c * lent.strides[2]];
      }
    }
  }
  return copy;
}

}  // namespace annulus::python
