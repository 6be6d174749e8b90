// The header of a .safetensors file, read as strictly as the format's own library does: JSON with
// each tensor named once, whose data lie one after the other and cover the file. Pure function.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace annulus {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;            // one that the format knows, e.g. "BF16"
  std::vector<uint64_t> shape;  // of any number of dimensions; sizes may be 0
  uint64_t begin = 0, end = 0;  // within the data, in bytes: shape times dtype
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;                           // in the order of their data
  std::vector<std::pair<std::string, std::string>> metadata = {};  // of __metadata__, as it stands
  size_t data_begin = 0;                                           // in the file, in bytes
};

// The header `text` over `data_bytes` bytes of data. INVALID_ARGUMENT names the tensor and the
// field, its value and what was expected. The file's order of names does not matter; neither do
// fields of a tensor that the format does not know. Takes time n log n for n tensors.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view text,
                                                         uint64_t data_bytes);
// That of a whole file.
absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(absl::Span<const std::byte> file);

}  // namespace annulus
