#include "tests/certificates.h"

#include <openssl/bio.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <atomic>

#include "base/check.h"

namespace annulus::test {
namespace {

using Key = std::shared_ptr<EVP_PKEY>;
using Cert = std::shared_ptr<X509>;

template <typename Write>
std::string PemOf(Write write) {
  BIO* const bio = BIO_new(BIO_s_mem());
  ANNULUS_CHECK(write(bio) == 1);
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio, &text);
  std::string pem(text, static_cast<size_t>(size));
  BIO_free(bio);
  return pem;
}

void AddExtension(X509* subject, X509* issuer, int id, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, subject, nullptr, nullptr, 0);
  X509_EXTENSION* const extension = X509V3_EXT_conf_nid(nullptr, &context, id, value.c_str());
  ANNULUS_CHECK(extension != nullptr);
  ANNULUS_CHECK(X509_add_ext(subject, extension, -1) == 1);
  X509_EXTENSION_free(extension);
}

Key MakeKey() {
  return Key(EVP_PKEY_Q_keygen(nullptr, nullptr, "EC", "P-256"), &EVP_PKEY_free);
}

// Without issuer and signature.
Cert Blank(const std::string& common_name, const Key& key, absl::Duration from,
           absl::Duration until) {
  static std::atomic<long> serial = 1;
  Cert cert(X509_new(), &X509_free);
  X509_set_version(cert.get(), X509_VERSION_3);
  ASN1_INTEGER_set(X509_get_serialNumber(cert.get()), serial++);
  X509_gmtime_adj(X509_getm_notBefore(cert.get()), static_cast<long>(absl::ToInt64Seconds(from)));
  X509_gmtime_adj(X509_getm_notAfter(cert.get()), static_cast<long>(absl::ToInt64Seconds(until)));
  X509_NAME_add_entry_by_txt(X509_get_subject_name(cert.get()), "CN", MBSTRING_UTF8,
                             reinterpret_cast<const uint8_t*>(common_name.c_str()), -1, -1, 0);
  ANNULUS_CHECK(X509_set_pubkey(cert.get(), key.get()) == 1);
  return cert;
}

}  // namespace

Authority::Authority(const std::string& name) : key_(MakeKey()) {
  x509_ = Blank(name, key_, -absl::Hours(24), absl::Hours(24));
  X509_set_issuer_name(x509_.get(), X509_get_subject_name(x509_.get()));
  AddExtension(x509_.get(), x509_.get(), NID_basic_constraints, "critical,CA:TRUE");
  AddExtension(x509_.get(), x509_.get(), NID_subject_key_identifier, "hash");
  ANNULUS_CHECK(X509_sign(x509_.get(), key_.get(), EVP_sha256()) > 0);
  certificate_ = PemOf([this](BIO* bio) { return PEM_write_bio_X509(bio, x509_.get()); });
}

Certificate Authority::Issue(const CertificateSpec& spec) const {
  const Key key = MakeKey();
  const Cert cert = Blank(spec.common_name, key, spec.from, spec.until);
  X509_set_issuer_name(cert.get(), X509_get_subject_name(x509_.get()));
  AddExtension(cert.get(), x509_.get(), NID_basic_constraints, "CA:FALSE");
  AddExtension(cert.get(), x509_.get(), NID_authority_key_identifier, "keyid");
  if (!spec.names.empty()) AddExtension(cert.get(), x509_.get(), NID_subject_alt_name, spec.names);
  ANNULUS_CHECK(X509_sign(cert.get(), key_.get(), EVP_sha256()) > 0);
  return {PemOf([&](BIO* bio) { return PEM_write_bio_X509(bio, cert.get()); }),
          PemOf([&](BIO* bio) {
            return PEM_write_bio_PrivateKey(bio, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
          })};
}

}  // namespace annulus::test
