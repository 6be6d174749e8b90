#include "tests/identity/signer.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/sha.h>

#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/check.h"

namespace annulus::test {
namespace {

constexpr size_t kNumberBytes = 32;

// A number of a key, at its own length or padded to `bytes`.
std::string NumberOf(const EVP_PKEY* key, const char* name, size_t bytes = 0) {
  BIGNUM* number = nullptr;
  ANNULUS_CHECK(EVP_PKEY_get_bn_param(key, name, &number) == 1);
  const size_t own = static_cast<size_t>(BN_num_bytes(number));
  std::string text(bytes == 0 ? own : bytes, '\0');
  BN_bn2binpad(number, reinterpret_cast<uint8_t*>(text.data()), static_cast<int>(text.size()));
  BN_free(number);
  return text;
}

std::string RawEcdsa(const std::string& der) {
  const auto* at = reinterpret_cast<const uint8_t*>(der.data());
  ECDSA_SIG* const both = d2i_ECDSA_SIG(nullptr, &at, static_cast<long>(der.size()));
  ANNULUS_CHECK(both != nullptr);
  std::string raw(2 * kNumberBytes, '\0');
  auto* const bytes = reinterpret_cast<uint8_t*>(raw.data());
  BN_bn2binpad(ECDSA_SIG_get0_r(both), bytes, kNumberBytes);
  BN_bn2binpad(ECDSA_SIG_get0_s(both), bytes + kNumberBytes, kNumberBytes);
  ECDSA_SIG_free(both);
  return raw;
}

}  // namespace

std::string ToBase64Url(absl::string_view bytes) {
  std::string text;
  absl::WebSafeBase64Escape(bytes, &text);
  return std::string(absl::StripSuffix(absl::StripSuffix(text, "="), "="));
}

std::string HexOf(absl::string_view bytes) {
  return absl::BytesToHexString(bytes);
}

std::string Sha256Hex(absl::string_view text) {
  uint8_t digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const uint8_t*>(text.data()), text.size(), digest);
  return HexOf({reinterpret_cast<const char*>(digest), sizeof digest});
}

Signer::Signer(std::string algorithm, EVP_PKEY* key)
    : algorithm_(std::move(algorithm)), key_(key, Free()) {
  ANNULUS_CHECK(key != nullptr);
}

Signer Signer::Rs256(int bits) {
  return Signer("RS256", EVP_PKEY_Q_keygen(nullptr, nullptr, "RSA", static_cast<size_t>(bits)));
}
Signer Signer::Es256() {
  return Signer("ES256", EVP_PKEY_Q_keygen(nullptr, nullptr, "EC", "P-256"));
}
Signer Signer::EdDsa() {
  return Signer("EdDSA", EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519"));
}

std::string Signer::Jwk(absl::string_view more) const {
  const auto field = [](const char* name, const std::string& bytes) {
    return absl::StrCat(",\"", name, "\":\"", ToBase64Url(bytes), "\"");
  };
  const EVP_PKEY* const key = key_.get();
  std::string kind;
  if (algorithm_ == "RS256") {
    kind = absl::StrCat("\"kty\":\"RSA\"", field("n", NumberOf(key, OSSL_PKEY_PARAM_RSA_N)),
                        field("e", NumberOf(key, OSSL_PKEY_PARAM_RSA_E)));
  } else if (algorithm_ == "ES256") {
    kind = absl::StrCat("\"kty\":\"EC\",\"crv\":\"P-256\"",
                        field("x", NumberOf(key, OSSL_PKEY_PARAM_EC_PUB_X, kNumberBytes)),
                        field("y", NumberOf(key, OSSL_PKEY_PARAM_EC_PUB_Y, kNumberBytes)));
  } else {
    std::string x(kNumberBytes, '\0');
    size_t size = x.size();
    ANNULUS_CHECK(EVP_PKEY_get_raw_public_key(key, reinterpret_cast<uint8_t*>(x.data()), &size) ==
                  1);
    kind = absl::StrCat("\"kty\":\"OKP\",\"crv\":\"Ed25519\"", field("x", x));
  }
  return absl::StrCat("{", more, kind, "}");
}

std::string Signer::Sign(absl::string_view header, absl::string_view claims) const {
  const std::string text = absl::StrCat(ToBase64Url(header), ".", ToBase64Url(claims));
  EVP_MD_CTX* const context = EVP_MD_CTX_new();
  const char* const hash = algorithm_ == "EdDSA" ? nullptr : "SHA256";
  const auto* const bytes = reinterpret_cast<const uint8_t*>(text.data());
  ANNULUS_CHECK(
      EVP_DigestSignInit_ex(context, nullptr, hash, nullptr, nullptr, key_.get(), nullptr) == 1);
  size_t size = 0;
  ANNULUS_CHECK(EVP_DigestSign(context, nullptr, &size, bytes, text.size()) == 1);
  std::string signature(size, '\0');
  ANNULUS_CHECK(EVP_DigestSign(context, reinterpret_cast<uint8_t*>(signature.data()), &size, bytes,
                               text.size()) == 1);
  signature.resize(size);
  EVP_MD_CTX_free(context);
  if (algorithm_ == "ES256") signature = RawEcdsa(signature);
  return absl::StrCat(text, ".", ToBase64Url(signature));
}

std::string Signer::SignAs(absl::string_view kid, absl::string_view claims) const {
  return Sign(absl::StrCat("{\"alg\":\"", algorithm_, "\",\"kid\":\"", kid, "\"}"), claims);
}

std::string JwksOf(absl::string_view keys) {
  return absl::StrCat("{\"keys\":[", keys, "]}");
}

}  // namespace annulus::test
