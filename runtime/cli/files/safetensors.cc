// The safetensors format: the header's length (u64), the header (JSON: name → dtype, shape and
// data_offsets from the header's end), then the values.
#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/cli/files/safetensors_header.h"
#include "runtime/cli/files/tensor_file.h"
#include "runtime/cli/files/tensor_place.h"

namespace annulus {
namespace {

constexpr size_t kLengthBytes = 8;
constexpr uint64_t kHeaderBytesMax = 100'000'000;  // as the format's reference implementation
constexpr size_t kNamesBytesMax = 120;             // of the tensors that an error lists

absl::StatusOr<DType> ReadDType(absl::string_view dtype) {
  if (dtype == "F32") return DType::kF32;
  if (dtype == "F16") return DType::kF16;
  if (dtype == "BF16") return DType::kBF16;
  return absl::InvalidArgumentError(
      absl::StrCat("dtype: ", Quoted(dtype), "; expected F32, F16 or BF16"));
}

absl::Status NotInFile(absl::string_view name, const std::vector<SafetensorsEntry>& entries) {
  std::string known;
  for (const SafetensorsEntry& entry : entries) {
    if (known.size() >= kNamesBytesMax) {
      absl::StrAppend(&known, " …");
      break;
    }
    absl::StrAppend(&known, " ", Quoted(entry.name, 40));
  }
  return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(name),
                                                 ": none in the file; expected one of its ",
                                                 entries.size(), ":", known));
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(absl::Span<const std::byte> file) {
  if (file.size() < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("size: ", file.size(), " bytes; expected a header of at least 8"));
  }
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < kLengthBytes; ++i)
    header_bytes |= uint64_t{static_cast<uint8_t>(file[i])} << (8 * i);
  const uint64_t rest_bytes = file.size() - kLengthBytes;
  if (header_bytes > rest_bytes || header_bytes > kHeaderBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("header length: ", header_bytes,
                                                   "; expected at most ",
                                                   std::min(rest_bytes, kHeaderBytesMax)));
  }
  const absl::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes,
                               header_bytes);
  ANNULUS_ASSIGN_OR_RETURN(SafetensorsHeader header,
                           ParseSafetensorsHeader(text, rest_bytes - header_bytes));
  header.data_begin = kLengthBytes + header_bytes;
  return header;
}

absl::StatusOr<TensorPlace> ParseSafetensors(absl::Span<const std::byte> file,
                                             absl::string_view name) {
  ANNULUS_ASSIGN_OR_RETURN(const SafetensorsHeader header, ReadSafetensorsHeader(file));
  const std::vector<SafetensorsEntry>& entries = header.entries;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.name != name) continue;
    ANNULUS_ASSIGN_OR_RETURN(const DType dtype, ReadDType(entry.dtype));
    // A size beyond int64 stands in a shape without elements only, which is refused as such.
    const std::vector<int64_t> shape(entry.shape.begin(), entry.shape.end());
    return PlaceTensor(dtype, shape, header.data_begin + entry.begin, entry.end - entry.begin);
  }
  return NotInFile(name, entries);
}

}  // namespace annulus
