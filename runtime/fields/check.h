// Checks a value against its description (field.h). Pure functions: INVALID_ARGUMENT is one line,
// `field: value; expected …`.
#pragma once

#include <concepts>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/fields/field.h"

namespace annulus {

template <typename Value>
absl::Status BadField(const FieldPath& path, const Value& value, absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat(path.ToString(), ": ", value, "; expected ", expected));
}

std::string NumberExpected(const Bounds& bounds);
absl::Status CheckSize(size_t size, absl::string_view unit, const Bounds& bounds,
                       const FieldPath& path);

template <Described T>
absl::Status CheckFields(const T& value, const FieldPath& path);

template <std::integral T>
absl::Status CheckNumber(T value, const Bounds& bounds, const FieldPath& path) {
  constexpr bool kWide = std::is_unsigned_v<T> && sizeof(T) == sizeof(int64_t);
  const bool beyond = kWide && value > static_cast<T>(std::numeric_limits<int64_t>::max());
  const auto number = static_cast<int64_t>(value);
  const bool fits =
      beyond ? bounds.max == std::numeric_limits<int64_t>::max()
             : number >= bounds.min && number <= bounds.max && number % bounds.multiple == 0;
  return fits ? absl::OkStatus() : BadField(path, value, NumberExpected(bounds));
}

template <typename T>
absl::Status CheckValue(const T& value, const Bounds& bounds, const FieldPath& path) {
  if constexpr (Described<T>) {
    return CheckFields(value, path);
  } else if constexpr (HasTextForm<T>) {
    if (TextForm<T>::Known(value)) return absl::OkStatus();
    return BadField(path, TextForm<T>::Write(value), TextForm<T>::Expected());
  } else if constexpr (IsOptional<T>::value) {
    return value.has_value() ? CheckValue(*value, bounds, path) : absl::OkStatus();
  } else if constexpr (IsVector<T>::value) {
    ANNULUS_RETURN_IF_ERROR(CheckSize(value.size(), "elements", bounds, path));
    if constexpr (!std::is_same_v<typename T::value_type, std::string>) {
      for (size_t i = 0; i < value.size(); ++i) {
        ANNULUS_RETURN_IF_ERROR(CheckValue(value[i], bounds, FieldPath{&path, {}, i}));
      }
    }
    return absl::OkStatus();
  } else if constexpr (std::is_same_v<T, std::string>) {
    return CheckSize(value.size(), "bytes", bounds, path);
  } else if constexpr (std::integral<T> && !std::is_same_v<T, bool>) {
    return CheckNumber(value, bounds, path);
  } else if constexpr (std::floating_point<T>) {
    constexpr Bounds kNone;
    if (bounds.min == kNone.min && bounds.max == kNone.max) return absl::OkStatus();
    const bool fits = value >= static_cast<T>(bounds.min) && value <= static_cast<T>(bounds.max);
    return fits ? absl::OkStatus() : BadField(path, value, NumberExpected(bounds));
  } else {
    return absl::OkStatus();
  }
}

template <Described T>
absl::Status CheckFields(const T& value, const FieldPath& path) {
  absl::Status status;
  ForEachField<T>([&](const auto& field, size_t) {
    if (!status.ok()) return;
    status = CheckValue(value.*field.member, field.bounds, FieldPath{&path, field.name});
  });
  if constexpr (requires { CheckWhole(value); }) {
    if (!status.ok()) return status;
    status = CheckWhole(value);
    if (status.ok()) return status;
    const std::string here = path.ToString();
    if (here.empty()) return status;
    return absl::Status(status.code(), absl::StrCat(here, ".", status.message()));
  }
  return status;
}

}  // namespace annulus
