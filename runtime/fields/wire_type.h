// Protobuf's encoding as far as it is used here. Private to this folder.
#pragma once

#include <cstdint>

namespace annulus {

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kSized = 2, kFixed32 = 5 };

// The fields of a status.
inline constexpr int kStatusCode = 1;
inline constexpr int kStatusMessage = 2;

}  // namespace annulus
