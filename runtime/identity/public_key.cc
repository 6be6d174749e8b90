#include "runtime/identity/public_key.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/free_by.h"

namespace annulus {
namespace {

constexpr size_t kP256Bytes = 32;
constexpr size_t kEd25519Bytes = 32;
constexpr int kExponentBitsMax = 64;

using Number = std::unique_ptr<BIGNUM, FreeBy<&BN_free>>;
using KeyContext = std::unique_ptr<EVP_PKEY_CTX, FreeBy<&EVP_PKEY_CTX_free>>;
using Builder = std::unique_ptr<OSSL_PARAM_BLD, FreeBy<&OSSL_PARAM_BLD_free>>;
using Params = std::unique_ptr<OSSL_PARAM, FreeBy<&OSSL_PARAM_free>>;

const uint8_t* BytesOf(absl::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

Number NumberOf(absl::string_view bytes) {
  return Number(BN_bin2bn(BytesOf(bytes), static_cast<int>(bytes.size()), nullptr));
}

// The key of a kind ("RSA", "EC") from its parts; nullptr if they make none.
EVP_PKEY* MakeKey(const char* kind, OSSL_PARAM_BLD* parts) {
  const Params params(OSSL_PARAM_BLD_to_param(parts));
  const KeyContext context(EVP_PKEY_CTX_new_from_name(nullptr, kind, nullptr));
  EVP_PKEY* key = nullptr;
  if (params == nullptr || context == nullptr || EVP_PKEY_fromdata_init(context.get()) != 1 ||
      EVP_PKEY_fromdata(context.get(), &key, EVP_PKEY_PUBLIC_KEY, params.get()) != 1) {
    key = nullptr;
  }
  ERR_clear_error();
  return key;
}

// Two numbers of 32 bytes as the ASN.1 that OpenSSL reads; empty if they are none.
std::string DerOf(absl::string_view signature) {
  if (signature.size() != 2 * kP256Bytes) return {};
  Number r = NumberOf(signature.substr(0, kP256Bytes));
  Number s = NumberOf(signature.substr(kP256Bytes));
  const std::unique_ptr<ECDSA_SIG, FreeBy<&ECDSA_SIG_free>> both(ECDSA_SIG_new());
  if (r == nullptr || s == nullptr || both == nullptr) return {};
  if (ECDSA_SIG_set0(both.get(), r.get(), s.get()) != 1) return {};
  r.release();  // they are the signature's now
  s.release();
  uint8_t* der = nullptr;
  const int size = i2d_ECDSA_SIG(both.get(), &der);
  if (size <= 0) return {};
  std::string text(reinterpret_cast<const char*>(der), static_cast<size_t>(size));
  OPENSSL_free(der);
  return text;
}

}  // namespace

void PublicKey::Free::operator()(evp_pkey_st* key) const {
  EVP_PKEY_free(key);
}

absl::StatusOr<PublicKey> PublicKey::Rsa(absl::string_view modulus, absl::string_view exponent) {
  constexpr size_t kBytesMax = kRsaBitsMax / 8 + 1;
  const Number n = NumberOf(modulus.substr(0, kBytesMax));
  const Number e = NumberOf(exponent.substr(0, kBytesMax));
  const int bits = BN_num_bits(n.get());
  if (bits < kRsaBitsMin || bits > kRsaBitsMax || !BN_is_odd(n.get())) {
    return absl::InvalidArgumentError(absl::StrCat("n: a number of ", bits, " bits; expected ",
                                                   kRsaBitsMin, " to ", kRsaBitsMax,
                                                   ", the last of them 1"));
  }
  if (BN_num_bits(e.get()) > kExponentBitsMax || !BN_is_odd(e.get()) || BN_is_one(e.get())) {
    return absl::InvalidArgumentError(
        absl::StrCat("e: a number of ", BN_num_bits(e.get()),
                     " bits; expected an odd one from 3 on, of at most ", kExponentBitsMax));
  }
  const Builder parts(OSSL_PARAM_BLD_new());
  OSSL_PARAM_BLD_push_BN(parts.get(), OSSL_PKEY_PARAM_RSA_N, n.get());
  OSSL_PARAM_BLD_push_BN(parts.get(), OSSL_PKEY_PARAM_RSA_E, e.get());
  Handle key(MakeKey("RSA", parts.get()));
  if (key == nullptr) return absl::InvalidArgumentError("n: no RSA key; expected one's modulus");
  return PublicKey(KeyAlgorithm::kRs256, std::move(key));
}

absl::StatusOr<PublicKey> PublicKey::P256(absl::string_view x, absl::string_view y) {
  for (const auto& [name, part] : {std::pair("x", x), {"y", y}}) {
    if (part.size() == kP256Bytes) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": ", part.size(), " bytes; expected ", kP256Bytes));
  }
  const std::string point = absl::StrCat(absl::string_view("\x04", 1), x, y);  // uncompressed
  const Builder parts(OSSL_PARAM_BLD_new());
  OSSL_PARAM_BLD_push_utf8_string(parts.get(), OSSL_PKEY_PARAM_GROUP_NAME, "P-256", 0);
  OSSL_PARAM_BLD_push_octet_string(parts.get(), OSSL_PKEY_PARAM_PUB_KEY, point.data(),
                                   point.size());
  Handle key(MakeKey("EC", parts.get()));
  if (key == nullptr) {
    return absl::InvalidArgumentError("x: no point of the curve with y; expected one of P-256");
  }
  return PublicKey(KeyAlgorithm::kEs256, std::move(key));
}

absl::StatusOr<PublicKey> PublicKey::Ed25519(absl::string_view x) {
  if (x.size() != kEd25519Bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("x: ", x.size(), " bytes; expected ", kEd25519Bytes));
  }
  Handle key(EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, BytesOf(x), x.size()));
  if (key == nullptr) return absl::InvalidArgumentError("x: no key; expected one of Ed25519");
  return PublicKey(KeyAlgorithm::kEdDsa, std::move(key));
}

bool PublicKey::Signed(absl::string_view text, absl::string_view signature) const {
  std::string der;
  if (algorithm_ == KeyAlgorithm::kEs256) {
    der = DerOf(signature);
    if (der.empty()) return false;
    signature = der;
  }
  const std::unique_ptr<EVP_MD_CTX, FreeBy<&EVP_MD_CTX_free>> context(EVP_MD_CTX_new());
  // EdDSA hashes by itself; RSA is padded by PKCS #1 v1.5 unless one asks for another padding.
  const char* const hash = algorithm_ == KeyAlgorithm::kEdDsa ? nullptr : "SHA256";
  const bool good = EVP_DigestVerifyInit_ex(context.get(), nullptr, hash, nullptr, nullptr,
                                            key_.get(), nullptr) == 1 &&
                    EVP_DigestVerify(context.get(), BytesOf(signature), signature.size(),
                                     BytesOf(text), text.size()) == 1;
  ERR_clear_error();  // else they pile up for whoever uses OpenSSL on this thread next
  return good;
}

}  // namespace annulus
