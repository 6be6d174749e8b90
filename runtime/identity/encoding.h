// How secrets, keys and tokens are written: SHA-256 in hex, and base64url as RFC 7515 has it. Pure
// functions, thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/optional.h"

namespace annulus {

// A bearer token: gRPC takes 8 KiB of metadata in all.
inline constexpr size_t kTokenBytesMax = 7 << 10;

using Sha256Digest = std::array<uint64_t, 4>;  // 32 bytes as they come

Sha256Digest Sha256(absl::string_view bytes);

// Whether they are equal, in a time that does not depend on where they differ.
inline bool SameDigest(const Sha256Digest& a, const Sha256Digest& b) {
  return ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3])) == 0;
}

// 64 hex digits of either case.
absl::optional<Sha256Digest> DigestFromHex(absl::string_view hex);

// base64url without padding (RFC 7515, section 2). nullopt for any other text, among them those
// whose last bits are not 0: what is accepted has one spelling.
absl::optional<std::string> FromBase64Url(absl::string_view text);

}  // namespace annulus
