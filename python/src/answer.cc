#include "python/src/answer.h"

#include <utility>

#include "python/src/arrays.h"

namespace annulus::python {
namespace {

PyStructSequence_Field fields[] = {
    {"out", nullptr},   {"lse", nullptr},    {"epoch", nullptr}, {"stats", nullptr},
    {"trace", nullptr}, {"tokens", nullptr}, {nullptr, nullptr},
};
PyStructSequence_Desc description = {"annulus.Answer", nullptr, fields, /*n_in_sequence=*/2};

PyTypeObject* type = nullptr;  // lives as long as the process

}  // namespace

// After a wait the caches are cold: a struct sequence is one small object, made without a line of
// Python's.
nb::object AnswerOf(nb::handle q, nb::handle out_dtype, Tensor out, Tensor lse,
                    AnswerExtras extras) {
  nb::object arrays[] = {nb::none(), nb::none()};
  if (out.tokens() > 0) {
    arrays[0] = ToNumpy(std::move(out), true);
    arrays[1] = ToNumpy(std::move(lse), false);
    if (!out_dtype.is_none() || !IsNumpy(q)) {
      const nb::object made = nb::module_::import_("annulus._arrays")
                                  .attr("as_kind_of")(q, arrays[0], arrays[1], out_dtype);
      arrays[0] = made[0];
      arrays[1] = made[1];
    }
  }
  nb::object answer = nb::steal(PyStructSequence_New(type));
  if (!answer.is_valid()) nb::raise_python_error();
  Py_ssize_t i = 0;
  for (nb::object* part :
       {&arrays[0], &arrays[1], &extras.epoch, &extras.stats, &extras.trace, &extras.tokens}) {
    PyStructSequence_SetItem(answer.ptr(), i++, part->release().ptr());
  }
  return answer;
}

void AddAnswer(nb::module_& module) {
  type = PyStructSequence_NewType(&description);
  if (type == nullptr) nb::raise_python_error();
  module.attr("Answer") = nb::borrow(reinterpret_cast<PyObject*>(type));
}

}  // namespace annulus::python
