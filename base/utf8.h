// Whether text is well-formed UTF-8 (RFC 3629). One text that is not makes a whole answer
// unreadable for those whose protobuf checks it. Pure function.
#pragma once

#include "absl/strings/string_view.h"

namespace annulus {

bool IsUtf8(absl::string_view text);

}  // namespace annulus
