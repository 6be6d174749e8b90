#include "runtime/cli/options/security_options.h"

#include "absl/strings/str_cat.h"

namespace annulus {
namespace {

constexpr int kReloadMaxS = 3600;

}  // namespace

void AddServerSecurity(Options* options, ServerSecurityFlags* flags) {
  options->Add("auth", "F",
               "who may call: a JSON file of tokens, certificates, jwt and quotas (everybody may)",
               SetText(&flags->auth));
  options->Add("reload-s", "N", "look every N s whether files of security have changed (5)",
               SetCount(&flags->reload_s, 1, kReloadMaxS));
}

void AddClientSecurity(Options* options, ClientSecurity* security) {
  options->Add("token-file", "F", "a file with the bearer token to show (none)",
               SetText(&security->token_file));
}

absl::StatusOr<std::unique_ptr<Authenticator>> OpenAuthenticator(const ServerSecurityFlags& flags) {
  if (flags.auth.empty()) return std::unique_ptr<Authenticator>();
  auto opened = Authenticator::Open(flags.auth, absl::Seconds(flags.reload_s));
  if (opened.ok()) return opened;
  return absl::InvalidArgumentError(absl::StrCat("--auth: ", opened.status().message()));
}

void AddSecurityMetrics(const Door& door, const Authenticator* authenticator,
                        std::vector<Metric>* metrics) {
  const auto add = [&](const char* name, const char* help, const char* label, const char* value,
                       uint64_t count) {
    metrics->push_back(
        {name, help, Metric::Kind::kCounter, static_cast<double>(count), {{label, value}}});
  };
  const Door::Counts refused = door.counts();
  for (const auto& [reason, count] :
       {std::pair("unauthenticated", refused.unauthenticated), {"denied", refused.denied}}) {
    add("annulus_calls_refused_total", "Calls whose caller is not known, or may not.", "reason",
        reason, count);
  }
  const Authenticator::Counts reloads =
      authenticator == nullptr ? Authenticator::Counts() : authenticator->counts();
  for (const auto& [result, count] :
       {std::pair("ok", reloads.reloads), {"failed", reloads.reloads_failed}}) {
    add("annulus_auth_reloads_total", "Times that files of --auth were read again.", "result",
        result, count);
  }
}

}  // namespace annulus
