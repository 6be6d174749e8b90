#include "python/src/head_table.h"

#include <utility>
#include <vector>

#include "annulus/head_table.h"
#include "python/src/arrays.h"
#include "python/src/errors.h"
#include "python/src/gil.h"

namespace annulus::python {
namespace {

HeadTable NewTable(const std::vector<int>& k_of_query, int k_heads,
                   const std::vector<int>& v_of_query, int v_heads) {
  auto table = HeadTable::Of(k_of_query, k_heads, v_of_query, v_heads);
  RaiseUnlessOk(table.status());
  return *std::move(table);
}

nb::object Queries(const HeadTable& table, nb::handle q) {
  const Borrowed given = Borrow(q, "q");
  auto spread = table.Queries(given.view);
  RaiseUnlessOk(spread.status());
  return ToNumpy(*std::move(spread), true);
}

nb::tuple Answers(const HeadTable& table, nb::handle out, nb::handle lse) {
  const Tensor rows = CopyF32(out, "out", false);
  const Tensor sums = CopyF32(lse, "lse", true);
  auto answer = table.Answers(rows, sums);
  RaiseUnlessOk(answer.status());
  return nb::make_tuple(ToNumpy(std::move(answer->out), true),
                        ToNumpy(std::move(answer->lse), false));
}

}  // namespace

void AddHeadTable(nb::module_& module) {
  nb::class_<HeadTable>(module, "HeadTable")
      .def_static("new", Within(&NewTable))
      .def("queries", Within(&Queries))
      .def("answers", Within(&Answers))
      .def_prop_ro("heads", &HeadTable::heads)
      .def_prop_ro("kv_heads", &HeadTable::kv_heads)
      .def_prop_ro("k_parts", &HeadTable::k_parts)
      .def_prop_ro("v_parts", &HeadTable::v_parts);
}

}  // namespace annulus::python
