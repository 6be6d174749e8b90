// How a value that is sent says what it consists of: a list of its fields, each with its number on
// the wire, its name and its bounds, from which writing (write.h), reading (read.h) and checking
// (check.h) follow. A struct gets one by a function beside it, found by the struct's type:
//
//   constexpr auto DescriptionOf(const Fork*) {
//     return Describe("Fork", Field(1, "context", &Fork::context),
//                     Field(2, "tokens", &Fork::tokens, AtLeast(0)));
//   }
//
// Fields may be numbers, bool, texts, times, statuses, enums and others with a TextForm, described
// structs, and vectors or optionals of those. What bounds of single fields cannot say is checked by
// absl::Status CheckWhole(const T&), if there is one. Values, known when compiled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace annulus {

// What a field may hold: a number (or each of a list of them) from min to max; a text or a list of
// size_min to size_max bytes or elements.
struct Bounds {
  int64_t min = std::numeric_limits<int64_t>::min();
  int64_t max = std::numeric_limits<int64_t>::max();
  int64_t multiple = 1;
  size_t size_min = 0;
  size_t size_max = std::numeric_limits<size_t>::max();
  // A number's value in a message that has none; other than 0, it is written where it is this too.
  int64_t absent = 0;
};

constexpr Bounds Between(int64_t min, int64_t max) {
  return {.min = min, .max = max};
}
constexpr Bounds AtLeast(int64_t min) {
  return {.min = min};
}
constexpr Bounds MultipleOf(int64_t multiple, int64_t max) {
  return {.min = multiple, .max = max, .multiple = multiple};
}
constexpr Bounds SizeBetween(size_t min, size_t max) {
  return {.size_min = min, .size_max = max};
}
constexpr Bounds SizeAtMost(size_t max) {
  return {.size_max = max};
}

template <typename T, typename M>
struct Field {
  constexpr Field(int number, absl::string_view name, M T::*member, Bounds bounds = {})
      : number(number), name(name), member(member), bounds(bounds) {}

  int number;
  absl::string_view name;
  M T::*member;
  Bounds bounds;
};

template <typename... F>
struct Description {
  absl::string_view name;
  std::tuple<F...> fields;
};

template <typename... F>
constexpr Description<F...> Describe(absl::string_view name, F... fields) {
  return {name, {fields...}};
}

template <typename T>
concept Described = requires(const T* value) {
  DescriptionOf(value);
};

// Calls visit(field, index) for each field of T, in order.
template <Described T, typename Visit>
constexpr void ForEachField(Visit visit) {
  constexpr auto kDescription = DescriptionOf(static_cast<const T*>(nullptr));
  std::apply(
      [&](const auto&... field) {
        size_t index = 0;
        (visit(field, index++), ...);
      },
      kDescription.fields);
}

// A value that travels as a text. A specialisation has
//   static std::string Write(const T&);  static std::optional<T> Parse(absl::string_view);
//   static bool Known(const T&);         static std::string Expected();
template <typename T>
struct TextForm;

template <typename T>
concept HasTextForm = requires(const T& value) {
  TextForm<T>::Write(value);
};

template <typename T>
struct IsVector : std::false_type {};
template <typename T>
struct IsVector<std::vector<T>> : std::true_type {};

template <typename T>
struct IsOptional : std::false_type {};
template <typename T>
struct IsOptional<std::optional<T>> : std::true_type {};

// Where in a message a field is, for errors: "Step.items[3].layer". Lives on the stack.
struct FieldPath {
  const FieldPath* up = nullptr;
  absl::string_view name;
  std::optional<size_t> index = std::nullopt;

  std::string ToString() const {
    std::string text = up == nullptr ? std::string() : up->ToString();
    if (index.has_value()) return absl::StrCat(text, "[", *index, "]");
    if (!text.empty() && !name.empty()) text += '.';
    return absl::StrCat(text, name);
  }
};

}  // namespace annulus
