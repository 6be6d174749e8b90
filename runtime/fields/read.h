// Reads a described value (field.h) from a message of the same fields as protobuf encodes it, and
// checks it. Nothing is believed: INVALID_ARGUMENT names the field, its value and what was
// expected. Fields that are not known are skipped, those that are absent are 0 or empty. Pure
// functions and values of one thread.
#pragma once

#include <bit>
#include <concepts>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "runtime/fields/check.h"
#include "runtime/fields/field.h"

namespace annulus {

// Goes over a message's fields. What does not parse ends it, and ok() is false from then on.
class FieldReader {
 public:
  explicit FieldReader(absl::string_view bytes) : rest_(bytes) {}

  bool Next();  // to the next field
  int number() const { return number_; }
  bool ok() const { return ok_; }

  // The field's content; 0 or empty, and the end, if it is of another type.
  uint64_t Number();
  uint32_t Fixed32();
  uint64_t Fixed64();
  absl::string_view Text();
  void Skip();

  bool sized() const { return type_ == 2; }
  // Of a list of numbers, whose content this reads: the next one, if there is one.
  bool Element(uint64_t* value);

 private:
  uint64_t Varint();
  uint64_t Fixed(size_t size);
  void Fail();

  absl::string_view rest_;
  int number_ = 0;
  uint32_t type_ = 0;
  bool ok_ = true;
};

absl::Status DoesNotParse(const FieldPath& path);
absl::Status ReadStatus(absl::string_view bytes, const FieldPath& path, absl::Status* status);
// Appends a list of 4 bytes each.
absl::Status ReadFloats(absl::string_view bytes, const Bounds& bounds, const FieldPath& path,
                        std::vector<float>* values);

template <Described T>
absl::Status ReadFields(absl::string_view bytes, const FieldPath& path, T* value);

template <std::integral T>
absl::Status ReadNumber(uint64_t read, const FieldPath& path, T* value) {
  *value = static_cast<T>(read);
  // Negative numbers have all 64 bits.
  if (std::is_same_v<T, bool> || static_cast<uint64_t>(*value) == read) return absl::OkStatus();
  return BadField(path, static_cast<int64_t>(read), "a number of 32 bits");
}

template <HasTextForm T>
absl::Status ReadText(absl::string_view text, const FieldPath& path, T* value) {
  const std::optional<T> parsed = TextForm<T>::Parse(text);
  if (!parsed.has_value()) {
    return BadField(path, absl::StrCat("\"", absl::CHexEscape(text.substr(0, 64)), "\""),
                    TextForm<T>::Expected());
  }
  *value = *parsed;
  return absl::OkStatus();
}

template <typename T>
absl::Status ReadField(FieldReader* in, const Bounds& bounds, const FieldPath& path, T* value) {
  if constexpr (Described<T>) {
    return ReadFields(in->Text(), path, value);
  } else if constexpr (HasTextForm<T>) {
    return ReadText(in->Text(), path, value);
  } else if constexpr (std::is_same_v<T, std::string>) {
    *value = std::string(in->Text());
  } else if constexpr (IsOptional<T>::value) {
    return ReadField(in, bounds, path, &value->emplace());
  } else if constexpr (IsVector<T>::value) {
    if constexpr (std::integral<typename T::value_type>) {
      if (in->sized()) {
        FieldReader list(in->Text());
        for (uint64_t element = 0; list.Element(&element);) {
          ANNULUS_RETURN_IF_ERROR(ReadNumber(element, path, &value->emplace_back()));
        }
        return list.ok() ? absl::OkStatus() : DoesNotParse(path);
      }
    } else if constexpr (std::is_same_v<typename T::value_type, float>) {
      if (in->sized()) return ReadFloats(in->Text(), bounds, path, value);
    }
    // Before it is taken in: each byte of a message may be an element.
    if (value->size() >= bounds.size_max) {
      return CheckSize(value->size() + 1, "elements", bounds, path);
    }
    const FieldPath here{&path, {}, value->size()};
    return ReadField(in, Bounds(), here, &value->emplace_back());
  } else if constexpr (std::is_same_v<T, absl::Status>) {
    return ReadStatus(in->Text(), path, value);
  } else if constexpr (std::is_same_v<T, absl::Duration>) {
    const auto ns = static_cast<int64_t>(in->Number());
    *value = ns == std::numeric_limits<int64_t>::max() ? absl::InfiniteDuration()
                                                       : absl::Nanoseconds(ns);
  } else if constexpr (std::is_same_v<T, float>) {
    *value = std::bit_cast<float>(in->Fixed32());
  } else if constexpr (std::is_same_v<T, double>) {
    *value = std::bit_cast<double>(in->Fixed64());
  } else {
    return ReadNumber(in->Number(), path, value);
  }
  return absl::OkStatus();
}

// What a field is that no message has.
template <typename T>
void Clear(const Bounds& bounds, T* value) {
  if constexpr (Described<T>) {
    ForEachField<T>(
        [&](const auto& field, size_t) { Clear(field.bounds, &(value->*field.member)); });
  } else if constexpr (std::integral<T> || std::floating_point<T>) {
    *value = static_cast<T>(bounds.absent);
  } else if constexpr (std::is_same_v<T, absl::Duration>) {
    *value = absl::ZeroDuration();
  } else {
    *value = T();
  }
}

template <Described T>
absl::Status ReadFields(absl::string_view bytes, const FieldPath& path, T* value) {
  Clear({}, value);
  uint64_t seen = 0;
  absl::Status status;
  FieldReader in(bytes);
  while (status.ok() && in.Next()) {
    bool known = false;
    ForEachField<T>([&](const auto& field, size_t index) {
      if (known || field.number != in.number()) return;
      known = true;
      seen |= uint64_t{1} << index;
      status = ReadField(&in, field.bounds, FieldPath{&path, field.name}, &(value->*field.member));
    });
    if (!known) in.Skip();
  }
  ANNULUS_RETURN_IF_ERROR(status);
  if (!in.ok()) return DoesNotParse(path);
  // An absent text is an empty one, which may be no value.
  ForEachField<T>([&](const auto& field, size_t index) {
    auto& member = value->*field.member;
    if constexpr (HasTextForm<std::decay_t<decltype(member)>>) {
      if ((seen >> index & 1) == 0 && status.ok()) {
        status = ReadText("", FieldPath{&path, field.name}, &member);
      }
    }
  });
  return status;
}

// `name` begins the names in errors; empty: they begin with the field.
template <Described T>
absl::StatusOr<T> ValueOf(absl::string_view bytes, absl::string_view name) {
  T value;
  const FieldPath path{nullptr, name};
  ANNULUS_RETURN_IF_ERROR(ReadFields(bytes, path, &value));
  ANNULUS_RETURN_IF_ERROR(CheckFields(value, path));
  return value;
}

}  // namespace annulus
