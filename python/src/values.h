// The service's values as Python's: a described struct (runtime/fields) is a dict, by the names
// that the protocol has for its fields. To be used with the GIL held.
#pragma once

#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "python/src/errors.h"
#include "python/src/nanobind.h"
#include "runtime/fields/field.h"
#include "runtime/fields/values.h"

namespace annulus::python {

// `otherwise` where it is None.
template <typename T>
T CastOr(nb::handle object, T otherwise) {
  return object.is_none() ? std::move(otherwise) : nb::cast<T>(object);
}

template <typename T>
nb::object ToPython(const T& value) {
  if constexpr (Described<T>) {
    nb::dict dict;
    ForEachField<T>([&](const auto& field, size_t) {
      dict[nb::str(field.name.data(), field.name.size())] = ToPython(value.*field.member);
    });
    return dict;
  } else if constexpr (HasTextForm<T>) {
    return nb::cast(TextForm<T>::Write(value));
  } else if constexpr (IsVector<T>::value) {
    nb::list list;
    for (const auto& one : value) list.append(ToPython(one));
    return list;
  } else {
    return nb::cast(value);
  }
}

template <typename T>
inline constexpr bool IsDescribedList = false;
template <Described T>
inline constexpr bool IsDescribedList<std::vector<T>> = true;

template <Described T>
void FromKeywords(const nb::dict& keywords, T* value, const FieldPath& path = {});

// A member is set to what Python says. Raises InvalidArgument naming the field.
template <typename T>
void FromPython(nb::handle from, const FieldPath& path, T* value) {
  if constexpr (HasTextForm<T>) {
    std::string text;
    std::optional<T> parsed;
    if (nb::try_cast(from, text)) parsed = TextForm<T>::Parse(text);
    if (!parsed.has_value()) {
      Raise(absl::InvalidArgumentError(absl::StrCat(path.ToString(), ": ", nb::repr(from).c_str(),
                                                    "; expected ", TextForm<T>::Expected())));
    }
    *value = *parsed;
  } else if constexpr (IsDescribedList<T>) {
    nb::sequence list;
    if (!nb::try_cast(from, list)) {
      Raise(absl::InvalidArgumentError(absl::StrCat(path.ToString(), ": ", nb::repr(from).c_str(),
                                                    "; expected a list of dicts")));
    }
    for (const nb::handle one : list) {
      const FieldPath here{&path, {}, value->size()};
      nb::dict keywords;
      if (!nb::try_cast(one, keywords)) {
        Raise(absl::InvalidArgumentError(
            absl::StrCat(here.ToString(), ": ", nb::repr(one).c_str(), "; expected a dict")));
      }
      FromKeywords(keywords, &value->emplace_back(), here);
    }
  } else if (!nb::try_cast(from, *value)) {
    Raise(absl::InvalidArgumentError(
        absl::StrCat(path.ToString(), ": ", nb::repr(from).c_str(), "; expected ",
                     std::is_same_v<T, bool>          ? "True or False"
                     : std::is_integral_v<T>          ? "an integer"
                     : std::is_floating_point_v<T>    ? "a number"
                     : std::is_same_v<T, std::string> ? "a text"
                                                      : "a list of texts")));
  }
}

// Keywords by the names of T's fields; those that are not named stay as they are. Raises
// InvalidArgument naming a keyword that T has not.
template <Described T>
void FromKeywords(const nb::dict& keywords, T* value, const FieldPath& path) {
  for (const auto& [key, from] : keywords) {
    std::string name;
    if (!nb::try_cast(key, name)) name = nb::repr(key).c_str();
    bool known = false;
    ForEachField<T>([&](const auto& field, size_t) {
      if (field.name != name) return;
      known = true;
      FromPython(from, FieldPath{&path, field.name}, &(value->*field.member));
    });
    if (!known) {
      std::string names;
      ForEachField<T>([&](const auto& field, size_t) { absl::StrAppend(&names, " ", field.name); });
      Raise(absl::InvalidArgumentError(absl::StrCat(FieldPath{&path, name}.ToString(),
                                                    ": no such keyword; expected one of", names)));
    }
  }
}

}  // namespace annulus::python
