#include "runtime/protocol/public/tls.h"

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <algorithm>
#include <ctime>

#include "absl/strings/str_cat.h"
#include "base/free_by.h"
#include "base/quoted.h"
#include "base/status.h"
#include "base/watched_file.h"

namespace annulus {
namespace {

using grpc::experimental::FileWatcherCertificateProvider;

constexpr unsigned kClientReloadS = 2;

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

absl::Status CheckCertificate(absl::string_view field, const std::string& path,
                              const std::string& text) {
  const Cert cert(PEM_read_bio_X509(BioOf(text).get(), nullptr, &NoPassword, nullptr));
  return cert != nullptr ? absl::OkStatus() : Refused(field, path, "a certificate in PEM");
}

absl::Status CheckGiven(const std::string& cert_path, const std::string& key_path) {
  if (!cert_path.empty() && !key_path.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(cert_path.empty() ? "tls_cert" : "tls_key",
                                                 ": none; expected tls_cert and tls_key together"));
}

// gRPC says nothing of files that it cannot use, and every connection fails.
absl::Status CheckPair(const std::string& cert_path, const std::string& key_path,
                       const std::string& cert_text, const std::string& key_text) {
  ANNULUS_RETURN_IF_ERROR(CheckCertificate("tls_cert", cert_path, cert_text));
  const Cert cert(PEM_read_bio_X509(BioOf(cert_text).get(), nullptr, &NoPassword, nullptr));
  const Key key(PEM_read_bio_PrivateKey(BioOf(key_text).get(), nullptr, &NoPassword, nullptr));
  if (key == nullptr) return Refused("tls_key", key_path, "a private key in PEM, not encrypted");
  if (X509_check_private_key(cert.get(), key.get()) != 1) {
    return Refused("tls_key", key_path, "the key of the certificate in tls_cert");
  }
  return absl::OkStatus();
}

// Of all certificates of a file.
absl::Time FirstEnd(const std::string& text) {
  const Bio bio = BioOf(text);
  absl::Time first = absl::InfiniteFuture();
  while (const Cert cert{PEM_read_bio_X509(bio.get(), nullptr, &NoPassword, nullptr)}) {
    tm end = {};
    if (ASN1_TIME_to_tm(X509_get0_notAfter(cert.get()), &end) == 1) {
      first = std::min(first, absl::FromTimeT(timegm(&end)));
    }
  }
  ERR_clear_error();
  return first;
}

}  // namespace

absl::StatusOr<ServerPem> ReadServerTls(const ServerTls& tls) {
  ANNULUS_RETURN_IF_ERROR(CheckGiven(tls.cert, tls.key));
  ServerPem pem;
  ANNULUS_ASSIGN_OR_RETURN(pem.cert, Read("tls_cert", tls.cert));
  ANNULUS_ASSIGN_OR_RETURN(pem.key, Read("tls_key", tls.key));
  ANNULUS_RETURN_IF_ERROR(CheckPair(tls.cert, tls.key, pem.cert, pem.key));
  if (!tls.client_ca.empty()) {
    ANNULUS_ASSIGN_OR_RETURN(pem.client_ca, Read("tls_client_ca", tls.client_ca));
    ANNULUS_RETURN_IF_ERROR(CheckCertificate("tls_client_ca", tls.client_ca, pem.client_ca));
  }
  pem.expiry = FirstEnd(pem.cert);
  return pem;
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(
    const ClientTls& tls) {
  if (!tls.on()) {
    if (tls.cert.empty() && tls.key.empty()) return grpc::InsecureChannelCredentials();
    return absl::InvalidArgumentError(
        "tls_ca: none; expected one beside tls_cert and tls_key, for connections are in plain text "
        "without it");
  }
  ANNULUS_ASSIGN_OR_RETURN(const std::string ca, Read("tls_ca", tls.ca));
  ANNULUS_RETURN_IF_ERROR(CheckCertificate("tls_ca", tls.ca, ca));
  const bool shows = !tls.cert.empty() || !tls.key.empty();
  if (shows) {
    ANNULUS_RETURN_IF_ERROR(CheckGiven(tls.cert, tls.key));
    ANNULUS_ASSIGN_OR_RETURN(const std::string cert, Read("tls_cert", tls.cert));
    ANNULUS_ASSIGN_OR_RETURN(const std::string key, Read("tls_key", tls.key));
    ANNULUS_RETURN_IF_ERROR(CheckPair(tls.cert, tls.key, cert, key));
  }
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(
      std::make_shared<FileWatcherCertificateProvider>(tls.key, tls.cert, tls.ca, kClientReloadS));
  options.watch_root_certs();
  if (shows) options.watch_identity_key_cert_pairs();
  options.set_verify_server_certs(true);
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace annulus
