// The safetensors format: the header's length (u64), the header (JSON: name → dtype, shape and
// data_offsets from the header's end), then the values.
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/cli/tensor_file.h"
#include "runtime/cli/tensor_place.h"

namespace annulus {
namespace {

using Json = nlohmann::json;

constexpr size_t kLengthBytes = 8;
constexpr uint64_t kHeaderBytesMax = 100'000'000;  // as the format's reference implementation

absl::Status Unexpected(absl::string_view field, const Json& found, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(
      field, " is ", Quoted(found.dump(-1, ' ', false, Json::error_handler_t::replace), 60),
      ", expected ", expected));
}

absl::StatusOr<DType> ReadDType(const Json& dtype) {
  if (dtype == "F32") return DType::kF32;
  if (dtype == "F16") return DType::kF16;
  if (dtype == "BF16") return DType::kBF16;
  return Unexpected("dtype", dtype, "F32, F16 or BF16");
}

// The list of unsigned integers that fit an int64.
absl::StatusOr<std::vector<int64_t>> ReadSizes(absl::string_view field, const Json& list,
                                               absl::string_view expected) {
  std::vector<int64_t> sizes;
  if (!list.is_array()) return Unexpected(field, list, expected);
  for (const Json& size : list) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > uint64_t{INT64_MAX}) {
      return Unexpected(field, list, expected);
    }
    sizes.push_back(static_cast<int64_t>(size.get<uint64_t>()));
  }
  return sizes;
}

// nlohmann keeps the last of two equal keys; a file that says two things must not be believed.
absl::StatusOr<Json> ReadHeader(absl::string_view text) {
  std::set<std::string> names;
  std::string twice;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::key && depth == 1 &&
        !names.insert(parsed.get<std::string>()).second) {
      twice = parsed.get<std::string>();
    }
    return true;
  };
  Json header = Json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (!header.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("header is ", Quoted(text, 40), ", expected a JSON object"));
  }
  if (!twice.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", Quoted(twice), " is named twice, expected once"));
  }
  return header;
}

}  // namespace

absl::StatusOr<TensorPlace> ParseSafetensors(absl::Span<const std::byte> file,
                                             absl::string_view name) {
  if (file.size() < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("size is ", file.size(), " bytes, expected a header of at least 8"));
  }
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < kLengthBytes; ++i)
    header_bytes |= uint64_t{static_cast<uint8_t>(file[i])} << (8 * i);
  const uint64_t rest_bytes = file.size() - kLengthBytes;
  if (header_bytes > rest_bytes || header_bytes > kHeaderBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("header length is ", header_bytes,
                                                   ", expected at most ",
                                                   std::min(rest_bytes, kHeaderBytesMax)));
  }
  const absl::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes,
                               header_bytes);
  ANNULUS_ASSIGN_OR_RETURN(const Json header, ReadHeader(text));
  const auto entry = header.find(std::string(name));
  if (name == "__metadata__" || entry == header.end() || !entry->is_object()) {
    std::string known;
    for (const auto& [key, value] : header.items()) {
      if (known.size() < 120 && key != "__metadata__")
        absl::StrAppend(&known, " ", Quoted(key, 40));
    }
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", Quoted(name), " is not in the file, expected one of", known));
  }
  ANNULUS_ASSIGN_OR_RETURN(const DType dtype, ReadDType(entry->value("dtype", Json())));
  ANNULUS_ASSIGN_OR_RETURN(const std::vector<int64_t> shape,
                           ReadSizes("shape", entry->value("shape", Json()), "three sizes"));
  const absl::string_view kOffsets = "[begin, end] within the file's data";
  const Json offsets_json = entry->value("data_offsets", Json());
  ANNULUS_ASSIGN_OR_RETURN(const std::vector<int64_t> offsets,
                           ReadSizes("data_offsets", offsets_json, kOffsets));
  const auto data_bytes = static_cast<int64_t>(rest_bytes - header_bytes);
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data_bytes) {
    return Unexpected("data_offsets", offsets_json, absl::StrCat(kOffsets, ", ", data_bytes));
  }
  return PlaceTensor(dtype, shape, kLengthBytes + header_bytes + static_cast<uint64_t>(offsets[0]),
                     static_cast<size_t>(offsets[1] - offsets[0]));
}

}  // namespace annulus
