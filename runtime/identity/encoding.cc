#include "runtime/identity/encoding.h"

#include <openssl/evp.h>

#include <cstring>

#include "base/check.h"

namespace annulus {
namespace {

// The value of a digit, or -1.
int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

int Base64UrlValue(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '-') return 62;
  if (c == '_') return 63;
  return -1;
}

}  // namespace

Sha256Digest Sha256(absl::string_view bytes) {
  // Fetched once: by name it takes longer than the hashing of a token.
  static const EVP_MD* const sha256 = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  ANNULUS_CHECK(sha256 != nullptr);
  Sha256Digest digest = {};
  unsigned size = 0;
  const int done = EVP_Digest(bytes.data(), bytes.size(), reinterpret_cast<uint8_t*>(digest.data()),
                              &size, sha256, nullptr);
  ANNULUS_CHECK(done == 1 && size == sizeof digest);
  return digest;
}

absl::optional<Sha256Digest> DigestFromHex(absl::string_view hex) {
  Sha256Digest digest;
  uint8_t bytes[sizeof digest];
  if (hex.size() != 2 * sizeof bytes) return absl::nullopt;
  for (size_t i = 0; i < sizeof bytes; ++i) {
    const int high = HexValue(hex[2 * i]), low = HexValue(hex[2 * i + 1]);
    if (high < 0 || low < 0) return absl::nullopt;
    bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  std::memcpy(digest.data(), bytes, sizeof bytes);
  return digest;
}

absl::optional<std::string> FromBase64Url(absl::string_view text) {
  std::string bytes;
  bytes.reserve(text.size() * 3 / 4);
  uint32_t bits = 0;
  int count = 0;  // of bits that are no byte yet
  for (const char c : text) {
    const int value = Base64UrlValue(c);
    if (value < 0) return absl::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes.push_back(static_cast<char>(bits >> count & 0xff));
    bits &= (1u << count) - 1;
  }
  if (count == 6 || bits != 0) return absl::nullopt;
  return bytes;
}

}  // namespace annulus
