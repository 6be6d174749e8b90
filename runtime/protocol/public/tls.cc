#include "runtime/protocol/public/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <algorithm>
#include <ctime>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/free_by.h"
#include "base/quoted.h"
#include "base/status.h"
#include "base/watched_file.h"

namespace annulus {
namespace {

using Cert = std::unique_ptr<X509, FreeBy<&X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, FreeBy<&EVP_PKEY_free>>;
using Bio = std::unique_ptr<BIO, FreeBy<&BIO_free>>;

absl::Status Refused(absl::string_view field, const std::string& path, absl::string_view expected) {
  ERR_clear_error();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": file ", QuotedEnd(path), "; expected ", expected));
}

absl::StatusOr<std::string> Read(absl::string_view field, const std::string& path) {
  absl::StatusOr<std::string> text = WatchedFile(path, kPemBytesMax).Read();
  if (text.ok()) return text;
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", text.status().message()));
}

Bio BioOf(const std::string& text) {
  return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// OpenSSL would ask at the terminal for the password of an encrypted key.
int NoPassword(char*, int, int, void*) {
  return -1;
}

// All certificates of a file, at least one. gRPC would use those before a spoilt one alone.
absl::StatusOr<std::vector<Cert>> ParseCertificates(absl::string_view field,
                                                    const std::string& path,
                                                    const std::string& text) {
  const Bio bio = BioOf(text);
  std::vector<Cert> certs;
  ERR_clear_error();
  while (Cert cert{PEM_read_bio_X509(bio.get(), nullptr, &NoPassword, nullptr)}) {
    certs.push_back(std::move(cert));
  }
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (certs.empty()) return Refused(field, path, "a certificate in PEM");
  if (at_end) return certs;
  return Refused(field, path,
                 absl::StrCat("certificates in PEM, and number ", certs.size() + 1, " is none"));
}

absl::StatusOr<std::string> ReadAuthorities(absl::string_view field, const std::string& path) {
  ANNULUS_ASSIGN_OR_RETURN(std::string text, Read(field, path));
  ANNULUS_RETURN_IF_ERROR(ParseCertificates(field, path, text).status());
  return text;
}

absl::Time FirstEnd(const std::vector<Cert>& certs) {
  absl::Time first = absl::InfiniteFuture();
  for (const Cert& cert : certs) {
    tm end = {};
    if (ASN1_TIME_to_tm(X509_get0_notAfter(cert.get()), &end) == 1) {
      first = std::min(first, absl::FromTimeT(timegm(&end)));
    }
  }
  return first;
}

// A certificate and its key, and when the chain ends. gRPC says nothing of files that it cannot
// use, and every connection fails.
absl::StatusOr<TlsPem> ReadPair(const std::string& cert_path, const std::string& key_path) {
  if (cert_path.empty() || key_path.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(cert_path.empty() ? "tls_cert" : "tls_key",
                                                   ": none; expected tls_cert and tls_key "
                                                   "together"));
  }
  TlsPem pem;
  ANNULUS_ASSIGN_OR_RETURN(pem.cert, Read("tls_cert", cert_path));
  ANNULUS_ASSIGN_OR_RETURN(const auto certs, ParseCertificates("tls_cert", cert_path, pem.cert));
  ANNULUS_ASSIGN_OR_RETURN(pem.key, Read("tls_key", key_path));
  const Key key(PEM_read_bio_PrivateKey(BioOf(pem.key).get(), nullptr, &NoPassword, nullptr));
  if (key == nullptr) return Refused("tls_key", key_path, "a private key in PEM, not encrypted");
  if (X509_check_private_key(certs[0].get(), key.get()) != 1) {
    return Refused("tls_key", key_path, "the key of the certificate in tls_cert");
  }
  pem.expiry = FirstEnd(certs);
  return pem;
}

}  // namespace

absl::StatusOr<TlsPem> ReadTls(const ServerTls& tls) {
  ANNULUS_ASSIGN_OR_RETURN(TlsPem pem, ReadPair(tls.cert, tls.key));
  if (!tls.client_ca.empty()) {
    ANNULUS_ASSIGN_OR_RETURN(pem.authorities, ReadAuthorities("tls_client_ca", tls.client_ca));
  }
  return pem;
}

absl::StatusOr<TlsPem> ReadTls(const ClientTls& tls) {
  if (!tls.on()) {
    return absl::InvalidArgumentError(
        "tls_ca: none; expected one beside tls_cert and tls_key, for connections are in plain text "
        "without it");
  }
  TlsPem pem;
  ANNULUS_ASSIGN_OR_RETURN(std::string authorities, ReadAuthorities("tls_ca", tls.ca));
  if (!tls.cert.empty() || !tls.key.empty()) {
    ANNULUS_ASSIGN_OR_RETURN(pem, ReadPair(tls.cert, tls.key));
  }
  pem.authorities = std::move(authorities);
  return pem;
}

}  // namespace annulus
