// An issuer of tokens for tests: keys made here, their JWKS, and tokens signed with them.
#pragma once

#include <openssl/evp.h>

#include <memory>
#include <string>

#include "absl/strings/string_view.h"

namespace annulus::test {

std::string ToBase64Url(absl::string_view bytes);

std::string HexOf(absl::string_view bytes);
// As the auth file has a token.
std::string Sha256Hex(absl::string_view text);

class Signer {
 public:
  static Signer Rs256(int bits = 2048);
  static Signer Es256();
  static Signer EdDsa();

  const std::string& algorithm() const { return algorithm_; }

  // The public key as an entry of a JWKS, with `more` fields: R"("kid":"a",)", with its comma.
  std::string Jwk(absl::string_view more = "") const;

  // A token of a header and claims, both JSON.
  std::string Sign(absl::string_view header, absl::string_view claims) const;
  // The same with a header of its algorithm and a kid.
  std::string SignAs(absl::string_view kid, absl::string_view claims) const;

 private:
  struct Free {
    void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  };

  Signer(std::string algorithm, EVP_PKEY* key);

  std::string algorithm_;
  std::shared_ptr<EVP_PKEY> key_;
};

// {"keys": […]}
std::string JwksOf(absl::string_view keys);

}  // namespace annulus::test
