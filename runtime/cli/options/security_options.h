// Options of who may come in, and of what a client shows and trusts. Thread-safe functions.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/cli/options/options.h"
#include "runtime/identity/authenticator.h"
#include "runtime/protocol/public/client_identity.h"
#include "runtime/protocol/public/tls_files.h"
#include "runtime/server/door.h"
#include "runtime/telemetry/metrics.h"

namespace annulus {

class AuditLog;

struct ServerSecurityFlags {
  std::string tls_cert;
  std::string tls_key;
  std::string tls_client_ca;
  std::string auth;  // file; empty: nobody is asked who they are
  bool insecure = false;
  int reload_s = 5;
};
void AddServerSecurity(Options* options, ServerSecurityFlags* flags);

// --tls-ca, --tls-cert, --tls-key and --token-file.
void AddClientSecurity(Options* options, ClientSecurity* security);
// --tls-ca and --token-file, for a server that is a client with its own certificate too.
void AddJoinSecurity(Options* options, ClientSecurity* security);

ServerTls TlsOf(const ServerSecurityFlags& flags);

// nullptr without a file. INVALID_ARGUMENT names --auth and the field of the file. `audit` may be
// null, and `certificates` is as of Authenticator.
absl::StatusOr<std::unique_ptr<Authenticator>> OpenAuthenticator(
    const ServerSecurityFlags& flags, AuditLog* audit, Authenticator::Certificates certificates);

// Whether every address of the host in "host:port" is of this machine alone.
bool IsLoopback(const std::string& endpoint);

// What the program must be told before it offers `endpoint` ("--listen", "0.0.0.0:7070") without
// `missing` ("TLS (--tls-cert, --tls-key)"; empty: nothing is missing). OK for loopback, and
// with --insecure.
absl::Status CheckExposed(absl::string_view option, const std::string& endpoint,
                          absl::string_view missing, bool insecure);

// Says once that --insecure was given, if it was.
void WarnIfInsecure(const ServerSecurityFlags& flags);

// annulus_insecure, annulus_calls_refused_total{reason} for want of a right, and of --auth
// annulus_secret_bad{secret} and annulus_secret_reloads_total{secret,result}. `authenticator` may
// be null.
void AddSecurityMetrics(const ServerSecurityFlags& flags, const Door& door,
                        const Authenticator* authenticator, std::vector<Metric>* metrics);

// annulus_secret_bad{secret} and annulus_secret_reloads_total{secret,result} of the files that TLS
// at a `port` has and, where a certificate is shown there,
// annulus_tls_certificate_expiry_timestamp_seconds{port}.
void AddTlsMetrics(const char* port, const char* secret, const TlsFiles::Reading& tls,
                   std::vector<Metric>* metrics);

}  // namespace annulus
