#include "runtime/cli/options/security_options.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/quoted.h"
#include "runtime/cli/options/service_options.h"

namespace annulus {
namespace {

constexpr int kReloadMaxS = 3600;

bool IsLoopback(const sockaddr& address) {
  if (address.sa_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    return ntohl(v4.sin_addr.s_addr) >> 24 == 127;
  }
  if (address.sa_family != AF_INET6) return false;
  const in6_addr& v6 = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  return IN6_IS_ADDR_LOOPBACK(&v6) || (IN6_IS_ADDR_V4MAPPED(&v6) && v6.s6_addr[12] == 127);
}

void AddReloads(const char* secret, uint64_t reloads, uint64_t reloads_failed, bool bad,
                std::vector<Metric>* metrics) {
  metrics->push_back({"annulus_secret_bad",
                      "1 while files of --auth or of TLS cannot be used, and earlier ones are.",
                      Metric::Kind::kGauge,
                      bad ? 1.0 : 0.0,
                      {{"secret", secret}}});
  for (const auto& [result, count] : {std::pair("ok", reloads), {"failed", reloads_failed}}) {
    metrics->push_back({"annulus_secret_reloads_total",
                        "Times that files of --auth or of TLS had changed.",
                        Metric::Kind::kCounter,
                        static_cast<double>(count),
                        {{"secret", secret}, {"result", result}}});
  }
}

}  // namespace

void AddServerSecurity(Options* options, ServerSecurityFlags* flags) {
  options->Add("tls-cert", "F", "serve over TLS with this certificate chain, PEM (plain text)",
               SetText(&flags->tls_cert));
  options->Add("tls-key", "F", "its private key, PEM", SetText(&flags->tls_key));
  options->Add("tls-client-ca", "F",
               "clients must show a certificate of these authorities, PEM (none)",
               SetText(&flags->tls_client_ca));
  options->Add("auth", "F",
               "who may call: a JSON file of tokens, certificates, jwt and quotas (everybody may)",
               SetText(&flags->auth));
  options->AddFlag("insecure", "serve beyond this machine without TLS, or without asking who calls",
                   &flags->insecure);
  options->Add("reload-s", "N", "look every N s whether files of security have changed (5)",
               SetCount(&flags->reload_s, 1, kReloadMaxS));
}

void AddJoinSecurity(Options* options, ClientSecurity* security) {
  options->Add("tls-ca", "F",
               "connect over TLS to servers with a certificate of these authorities, PEM (plain "
               "text)",
               SetText(&security->tls.ca));
  options->Add("token-file", "F", "a file with the bearer token to show (none)",
               SetText(&security->token_file));
}

void AddClientSecurity(Options* options, ClientSecurity* security) {
  AddJoinSecurity(options, security);
  options->Add("tls-cert", "F", "the certificate chain to show, PEM (none)",
               SetText(&security->tls.cert));
  options->Add("tls-key", "F", "its private key, PEM", SetText(&security->tls.key));
}

ServerTls TlsOf(const ServerSecurityFlags& flags) {
  return {.cert = flags.tls_cert,
          .key = flags.tls_key,
          .client_ca = flags.tls_client_ca,
          .reload_period = absl::Seconds(flags.reload_s)};
}

absl::StatusOr<std::unique_ptr<Authenticator>> OpenAuthenticator(
    const ServerSecurityFlags& flags, AuditLog* audit, Authenticator::Certificates certificates) {
  if (flags.auth.empty()) return std::unique_ptr<Authenticator>();
  auto opened = Authenticator::Open(flags.auth, absl::Seconds(flags.reload_s), audit, certificates);
  if (opened.ok()) return opened;
  return absl::InvalidArgumentError(absl::StrCat("--auth: ", opened.status().message()));
}

bool IsLoopback(const std::string& endpoint) {
  std::string host = endpoint.substr(0, endpoint.rfind(':'));
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) return false;
  bool loopback = true;
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    loopback = loopback && IsLoopback(*address->ai_addr);
  }
  freeaddrinfo(found);
  return loopback;
}

absl::Status CheckExposed(absl::string_view option, const std::string& endpoint,
                          absl::string_view missing, bool insecure) {
  if (missing.empty() || insecure || IsLoopback(endpoint)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(option, ": ", Quoted(endpoint),
                                                 " is not loopback; expected ", missing,
                                                 ", or --insecure to do without"));
}

void WarnIfInsecure(const ServerSecurityFlags& flags) {
  if (!flags.insecure) return;
  Log(LogLevel::kWarning,
      "insecure: what is not protected by TLS or tokens is open to whoever reaches this address",
      {{"tls", flags.tls_cert.empty() ? "off" : "on"},
       {"auth", flags.auth.empty() ? "off" : "on"}});
}

void AddSecurityMetrics(const ServerSecurityFlags& flags, const Door& door,
                        const Authenticator* authenticator, std::vector<Metric>* metrics) {
  metrics->push_back({"annulus_insecure",
                      "1 where --insecure was said.",
                      Metric::Kind::kGauge,
                      flags.insecure ? 1.0 : 0.0,
                      {}});
  const Door::Counts refused = door.counts();
  metrics->push_back(CallsRefused("unauthenticated", refused.unauthenticated));
  metrics->push_back(CallsRefused("denied", refused.denied));
  const Authenticator::Counts auth =
      authenticator == nullptr ? Authenticator::Counts() : authenticator->counts();
  AddReloads("auth", auth.reloads, auth.reloads_failed, auth.bad, metrics);
}

void AddTlsMetrics(const char* port, const char* secret, const TlsFiles::Reading& tls,
                   std::vector<Metric>* metrics) {
  if (tls.expiry.has_value()) {
    metrics->push_back({"annulus_tls_certificate_expiry_timestamp_seconds",
                        "When the first certificate of a port's chain ends, since the Unix epoch.",
                        Metric::Kind::kGauge,
                        absl::ToDoubleSeconds(*tls.expiry - absl::UnixEpoch()),
                        {{"port", port}}});
  }
  AddReloads(secret, tls.reloads, tls.reloads_failed, tls.bad, metrics);
}

}  // namespace annulus
