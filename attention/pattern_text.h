// The text of a pattern as its parser reads it: a cursor, and what is said of what stands there.
// Private to the pattern's implementation; not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace annulus {

class PatternText {
 public:
  explicit PatternText(absl::string_view text) : text_(text) {}

  // These look at what stands at the cursor after blanks; Accept and Expect go past it.
  void SkipBlanks();
  bool AtEnd();
  bool Accept(char c);
  absl::Status Expect(char c);
  absl::string_view Word();  // letters, digits and _; may be empty

  // Goes past a number.
  absl::StatusOr<int64_t> ParseNumber(absl::string_view what, int64_t least);

  // INVALID_ARGUMENT with the position, what was expected there and what was found: the cursor's
  // word or character, escaped and cut, unless it is said.
  absl::Status Refuse(size_t at, absl::string_view expected, absl::string_view found) const;
  absl::Status Expected(absl::string_view expected);

 protected:
  const absl::string_view text_;
  size_t at_ = 0;
};

}  // namespace annulus
