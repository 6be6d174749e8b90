#include "python/src/key_list.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/key_list.h"
#include "python/src/errors.h"
#include "python/src/gil.h"

namespace annulus::python {
namespace {

// Shared by all calls that bring it.
struct PythonList {
  std::shared_ptr<const KeyListData> data;
  ListHandle handle = {};
};

template <typename Number>
using Numbers = nb::ndarray<const Number, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <typename Number>
std::vector<Number> Copy(const Numbers<Number>& numbers) {
  return {numbers.data(), numbers.data() + numbers.size()};
}

PythonList* NewList(const std::string& unit, const std::string& rows, int64_t block_tokens,
                    int heads, int64_t q_begin, const Numbers<int64_t>& begin,
                    const Numbers<int32_t>& keys) {
  const auto known_unit = ParseUnit(unit);
  if (!known_unit.has_value()) {
    Raise(
        absl::InvalidArgumentError(absl::StrCat("unit: '", unit, "'; expected blocks or tokens")));
  }
  const auto known_rows = ParseRows(rows);
  if (!known_rows.has_value()) {
    Raise(absl::InvalidArgumentError(
        absl::StrCat("rows: '", rows, "'; expected token, block, all or vertical-slash")));
  }
  auto data = std::make_shared<KeyListData>();
  data->unit = *known_unit;
  data->rows = *known_rows;
  data->block_tokens = block_tokens;
  data->heads = heads;
  data->q_begin = q_begin;
  data->begin = Copy<int64_t>(begin);
  data->keys = Copy<int32_t>(keys);
  RaiseUnlessOk(KeyList::Make(std::shared_ptr<const KeyListData>(data)).status());
  return new PythonList{std::move(data)};
}

}  // namespace

std::vector<CallList> ListsOf(const nb::dict& lists) {
  std::vector<CallList> all;
  for (const auto& [name, list] : lists) {
    const auto& given = nb::cast<PythonList&>(list);
    all.push_back({nb::cast<std::string>(name), given.data, given.handle});
  }
  return all;
}

nb::dict ToPython(const std::vector<CallList>& lists) {
  nb::dict all;
  for (const CallList& list : lists) {
    all[list.name.c_str()] = nb::cast(PythonList{list.data});
  }
  return all;
}

void AddKeyList(nb::module_& module) {
  nb::class_<PythonList>(module, "KeyList")
      .def_static("new", Within(&NewList))
      .def("keep", [](PythonList& list) {
        if (!list.handle.given()) list.handle = NewListHandle();
      });
}

}  // namespace annulus::python
