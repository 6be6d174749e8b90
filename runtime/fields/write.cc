#include "runtime/fields/write.h"

#include "runtime/fields/wire_type.h"

namespace annulus {

void FieldWriter::Varint(uint64_t value) {
  while (value >= 0x80) {
    bytes_.push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  bytes_.push_back(static_cast<char>(value));
}

void FieldWriter::Number(int number, uint64_t value) {
  Tag(number, kVarint);
  Varint(value);
}

void FieldWriter::Fixed32(int number, uint32_t value) {
  Tag(number, kFixed32);
  bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void FieldWriter::Fixed64(int number, uint64_t value) {
  Tag(number, kFixed64);
  bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void FieldWriter::Text(int number, absl::string_view text) {
  Tag(number, kSized);
  Varint(text.size());
  bytes_.append(text.data(), text.size());
}

void FieldWriter::Floats(int number, absl::Span<const float> values) {
  Tag(number, kSized);
  Varint(values.size() * sizeof(float));
  bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

void FieldWriter::Status(int number, const absl::Status& status) {
  const size_t begin = Begin(number);
  if (!status.ok()) {
    Number(kStatusCode, static_cast<uint64_t>(status.code()));
    Text(kStatusMessage, status.message().substr(0, kErrorBytesMax));
  }
  End(begin);
}

size_t FieldWriter::Begin(int number) {
  Tag(number, kSized);
  bytes_.push_back(0);  // the size, where it is less than 128
  return bytes_.size();
}

void FieldWriter::End(size_t begin) {
  uint64_t size = bytes_.size() - begin;
  char* at = &bytes_[begin - 1];
  if (size < 0x80) {
    *at = static_cast<char>(size);
    return;
  }
  char rest[10];
  size_t count = 0;
  *at = static_cast<char>(size | 0x80);
  while ((size >>= 7) != 0) rest[count++] = static_cast<char>(size >= 0x80 ? size | 0x80 : size);
  bytes_.insert(begin, rest, count);
}

}  // namespace annulus
