// PublicKey: one key of RS256, ES256 or EdDSA, and whether it has made a signature. Immutable;
// thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

struct evp_pkey_st;

namespace annulus {

enum class KeyAlgorithm { kRs256, kEs256, kEdDsa };

// "RS256", "ES256", "EdDSA": as RFC 7518 and RFC 8037 have them.
constexpr absl::string_view Name(KeyAlgorithm algorithm) {
  constexpr absl::string_view kNames[] = {"RS256", "ES256", "EdDSA"};
  return kNames[static_cast<int>(algorithm)];
}

inline constexpr int kRsaBitsMin = 2048;
inline constexpr int kRsaBitsMax = 8192;

class PublicKey {
 public:
  // Numbers are big endian, as RFC 7518, section 6 has them. INVALID_ARGUMENT says what is wrong.
  static absl::StatusOr<PublicKey> Rsa(absl::string_view modulus, absl::string_view exponent);
  static absl::StatusOr<PublicKey> P256(absl::string_view x, absl::string_view y);
  static absl::StatusOr<PublicKey> Ed25519(absl::string_view x);

  KeyAlgorithm algorithm() const { return algorithm_; }

  // The signature as RFC 7515 has it: of ES256 two numbers of 32 bytes.
  bool Signed(absl::string_view text, absl::string_view signature) const;

 private:
  struct Free {
    void operator()(evp_pkey_st* key) const;
  };
  using Handle = std::unique_ptr<evp_pkey_st, Free>;

  PublicKey(KeyAlgorithm algorithm, Handle key) : algorithm_(algorithm), key_(std::move(key)) {}

  KeyAlgorithm algorithm_;
  Handle key_;
};

}  // namespace annulus
