// Certificates for tests: an authority made here, and what it issues, in PEM.
#pragma once

#include <openssl/evp.h>
#include <openssl/x509.h>

#include <memory>
#include <string>

#include "absl/time/time.h"

namespace annulus::test {

struct CertificateSpec {
  std::string common_name = "somebody";
  // As OpenSSL writes them: "IP:127.0.0.1,DNS:localhost". Empty: none.
  std::string names = "IP:127.0.0.1,DNS:localhost";
  absl::Duration from = -absl::Hours(1);  // of validity, from now on
  absl::Duration until = absl::Hours(1);
};

struct Certificate {
  std::string certificate;
  std::string key;
};

class Authority {
 public:
  explicit Authority(const std::string& name = "test authority");

  const std::string& certificate() const { return certificate_; }  // PEM
  Certificate Issue(const CertificateSpec& spec = {}) const;

 private:
  std::shared_ptr<EVP_PKEY> key_;
  std::shared_ptr<X509> x509_;
  std::string certificate_;
};

}  // namespace annulus::test
