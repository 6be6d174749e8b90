#include "runtime/fields/read.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "runtime/fields/wire_type.h"

namespace annulus {

absl::Status DoesNotParse(const FieldPath& path) {
  const std::string where = path.ToString();
  return absl::InvalidArgumentError(
      absl::StrCat(where.empty() ? "message" : where, ": does not parse; expected protobuf"));
}

absl::Status ReadStatus(absl::string_view bytes, const FieldPath& path, absl::Status* status) {
  uint64_t code = 0;
  absl::string_view message;
  FieldReader in(bytes);
  while (in.Next()) {
    if (in.number() == kStatusCode) {
      code = in.Number();
    } else if (in.number() == kStatusMessage) {
      message = in.Text();
    } else {
      in.Skip();
    }
  }
  if (!in.ok()) return DoesNotParse(path);
  if (code > static_cast<uint64_t>(absl::StatusCode::kUnauthenticated)) {
    return BadField(FieldPath{&path, "code"}, code, "one of gRPC's codes");
  }
  *status = absl::Status(static_cast<absl::StatusCode>(code), message);
  return absl::OkStatus();
}

absl::Status ReadFloats(absl::string_view bytes, const Bounds& bounds, const FieldPath& path,
                        std::vector<float>* values) {
  if (bytes.size() % sizeof(float) != 0) return DoesNotParse(path);
  const size_t before = values->size();
  const size_t count = before + bytes.size() / sizeof(float);
  if (count > bounds.size_max) return CheckSize(count, "elements", bounds, path);
  values->resize(count);
  if (!bytes.empty()) std::memcpy(values->data() + before, bytes.data(), bytes.size());
  return absl::OkStatus();
}

void FieldReader::Fail() {
  ok_ = false;
  rest_ = {};
}

uint64_t FieldReader::Varint() {
  uint64_t value = 0;
  for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(rest_.front());
    rest_.remove_prefix(1);
    value |= uint64_t{byte & 0x7fu} << shift;
    if (byte < 0x80) return value;
  }
  Fail();
  return 0;
}

uint64_t FieldReader::Fixed(size_t size) {
  uint64_t value = 0;
  if (rest_.size() < size) {
    Fail();
    return 0;
  }
  std::memcpy(&value, rest_.data(), size);
  rest_.remove_prefix(size);
  return value;
}

bool FieldReader::Next() {
  if (rest_.empty()) return false;
  const uint64_t tag = Varint();
  constexpr uint64_t kTagMax = uint64_t{1} << 32;
  if (!ok_ || tag >> 3 == 0 || tag >= kTagMax) {
    Fail();
    return false;
  }
  number_ = static_cast<int>(tag >> 3);
  type_ = static_cast<uint32_t>(tag & 7);
  return true;
}

bool FieldReader::Element(uint64_t* value) {
  if (rest_.empty()) return false;
  *value = Varint();
  return ok_;
}

uint64_t FieldReader::Number() {
  if (type_ == kVarint) return Varint();
  Fail();
  return 0;
}

uint32_t FieldReader::Fixed32() {
  if (type_ == kFixed32) return static_cast<uint32_t>(Fixed(sizeof(uint32_t)));
  Fail();
  return 0;
}

uint64_t FieldReader::Fixed64() {
  if (type_ == kFixed64) return Fixed(sizeof(uint64_t));
  Fail();
  return 0;
}

absl::string_view FieldReader::Text() {
  const uint64_t size = type_ == kSized ? Varint() : std::numeric_limits<uint64_t>::max();
  if (size > rest_.size()) {
    Fail();
    return {};
  }
  const absl::string_view text = rest_.substr(0, size);
  rest_.remove_prefix(size);
  return text;
}

void FieldReader::Skip() {
  switch (type_) {
    case kVarint:
      Varint();
      return;
    case kFixed64:
      Fixed(sizeof(uint64_t));
      return;
    case kSized:
      Text();
      return;
    case kFixed32:
      Fixed(sizeof(uint32_t));
      return;
    default:
      Fail();
  }
}

}  // namespace annulus
