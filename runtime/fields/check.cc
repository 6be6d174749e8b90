#include "runtime/fields/check.h"

namespace annulus {

std::string NumberExpected(const Bounds& bounds) {
  std::string text = bounds.multiple == 1 ? ""
                                          : absl::StrCat("a multiple of ", bounds.multiple,
                                                         bounds.min == 0 ? " " : " from ");
  if (bounds.max == std::numeric_limits<int64_t>::max()) {
    return absl::StrCat(text, bounds.min, " or more");
  }
  return absl::StrCat(text, bounds.min, " to ", bounds.max);
}

absl::Status CheckSize(size_t size, absl::string_view unit, const Bounds& bounds,
                       const FieldPath& path) {
  if (size >= bounds.size_min && size <= bounds.size_max) return absl::OkStatus();
  const std::string expected = bounds.size_min == bounds.size_max ? absl::StrCat(bounds.size_min)
                               : bounds.size_min == 0
                                   ? absl::StrCat("at most ", bounds.size_max)
                                   : absl::StrCat(bounds.size_min, " to ", bounds.size_max);
  return BadField(path, absl::StrCat(size, " ", unit), expected);
}

}  // namespace annulus
