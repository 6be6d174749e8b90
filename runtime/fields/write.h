// Writes a described value (field.h) as protobuf writes a message of the same fields, so that a
// message of a .proto and a value are each other's bytes. Pure functions and values of one thread.
#pragma once

#include <bit>
#include <concepts>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "runtime/fields/field.h"

namespace annulus {

// Of the text of an error that is part of a message; the rest of it is left out.
inline constexpr size_t kErrorBytesMax = 1024;

class FieldWriter {
 public:
  void Number(int number, uint64_t value);
  void Fixed32(int number, uint32_t value);
  void Fixed64(int number, uint64_t value);
  void Text(int number, absl::string_view text);
  void Floats(int number, absl::Span<const float> values);
  void Element(uint64_t value) { Varint(value); }  // of a list of numbers, inside Begin and End
  void Status(int number, const absl::Status& status);

  // What is written between the two is the field's content.
  size_t Begin(int number);
  void End(size_t begin);

  void Reserve(size_t bytes) { bytes_.reserve(bytes); }
  std::string Take() && { return std::move(bytes_); }

 private:
  void Varint(uint64_t value);
  void Tag(int number, uint32_t type) { Varint(static_cast<uint64_t>(number) << 3 | type); }

  std::string bytes_;
};

template <Described T>
void WriteFields(const T& value, FieldWriter* out);

// As protobuf does, 0 and what is empty are left out, but for elements, what is optional and what
// means something else where it is absent.
template <typename T>
void WriteField(int number, const T& value, bool always, FieldWriter* out) {
  if constexpr (Described<T>) {
    const size_t begin = out->Begin(number);
    WriteFields(value, out);
    out->End(begin);
  } else if constexpr (HasTextForm<T>) {
    out->Text(number, TextForm<T>::Write(value));
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (always || !value.empty()) out->Text(number, value);
  } else if constexpr (IsOptional<T>::value) {
    if (value.has_value()) WriteField(number, *value, true, out);
  } else if constexpr (IsVector<T>::value) {
    if constexpr (std::integral<typename T::value_type>) {
      if (value.empty()) return;
      const size_t begin = out->Begin(number);
      for (const auto element : value) {
        out->Element(static_cast<uint64_t>(static_cast<int64_t>(element)));
      }
      out->End(begin);
    } else if constexpr (std::is_same_v<typename T::value_type, float>) {
      if (!value.empty()) out->Floats(number, value);
    } else {
      for (const auto& element : value) WriteField(number, element, true, out);
    }
  } else if constexpr (std::is_same_v<T, absl::Status>) {
    out->Status(number, value);
  } else if constexpr (std::is_same_v<T, absl::Duration>) {
    // Saturates: an infinite time is the largest number.
    out->Number(number, static_cast<uint64_t>(absl::ToInt64Nanoseconds(value)));
  } else if constexpr (std::is_same_v<T, float>) {
    if (const auto bits = std::bit_cast<uint32_t>(value); always || bits != 0) {
      out->Fixed32(number, bits);
    }
  } else if constexpr (std::is_same_v<T, double>) {
    if (const auto bits = std::bit_cast<uint64_t>(value); always || bits != 0) {
      out->Fixed64(number, bits);
    }
  } else {
    static_assert(std::integral<T>);
    if (always || value != 0) out->Number(number, static_cast<uint64_t>(value));
  }
}

template <Described T>
void WriteFields(const T& value, FieldWriter* out) {
  ForEachField<T>([&](const auto& field, size_t) {
    WriteField(field.number, value.*field.member, field.bounds.absent != 0, out);
  });
}

template <Described T>
std::string BytesOf(const T& value) {
  FieldWriter out;
  WriteFields(value, &out);
  return std::move(out).Take();
}

}  // namespace annulus
