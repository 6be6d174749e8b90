#include <set>
#include <string>

#include "base/check.h"
#include "runtime/identity/auth_file.h"
#include "runtime/identity/jwks.h"
#include "runtime/identity/jwt.h"
#include "tests/fuzz/targets/targets.h"

namespace annulus::fuzz {
namespace {

// Keys of which tests/fuzz/corpus/identity has tokens; their private halves are forgotten.
constexpr char kKeys[] =
    R"({"keys":[{"kty":"OKP","crv":"Ed25519","x":"ZuHeCsS8vmdH-5vqfzn9pyBbeXj8uFDFKqWn15Hwa)"
    R"(r8"},{"kid":"e","kty":"EC","crv":"P-256","x":"k4kwr7oZjWkeqvypfKhzvzuooqWHyxz5hpoxKa)"
    R"(OGa_8","y":"DwoUKYF8HxBWKhO6jftVxUNR-mV5FVup-rNJ009IvQ8"},{"kid":"r","kty":"RSA","n")"
    R"(:"ya1bMEaw0VfVq65qhLZU7YLpNS_en3bzbVPhHwfds_iz-_EV3u4DculnFWmZOty0T9OLJDNxvMeFkBZxY3)"
    R"(soW_4D5fP1If8xp6RGVAX6Wz29P3Qru72_n-kL0mBx2fDRjhdPep3OwefyMUlSlAY_S_lKj4b9jQiflXzK_r)"
    R"(GNEKo1vUZHJeqhYH8UmUrHBWSY6COfM6Qa0FXrI7iT7qaBcSM2YWgxkm5atm8q5SAcoxBioiW6pX7Xp6VNab)"
    R"(C3oxeylVHV5FLXtNknd-qYpin0wljwUpKKRziXzk1E3fStUcA-h6N7HXjVFZUJG8VzpwEVTYkiu7FAKQSOIw)"
    R"(WX-4olhw","e":"AQAB"}]})";

// In one line, whatever the input was.
void CheckRefusal(const absl::Status& status) {
  ANNULUS_CHECK(absl::IsInvalidArgument(status));
  ANNULUS_CHECK(status.message().find('\n') == absl::string_view::npos);
}

bool TryAuthFile(absl::string_view text) {
  const absl::StatusOr<AuthFile> file = ParseAuthFile(text);
  if (!file.ok()) {
    CheckRefusal(file.status());
    return false;
  }
  ANNULUS_CHECK(!file->tokens.empty() || !file->certificates.empty() || file->jwt.has_value());
  std::set<Sha256Digest> digests;
  for (const AuthFile::Token& token : file->tokens) {
    ANNULUS_CHECK(digests.insert(token.digest).second);
    ANNULUS_CHECK(!token.caller.name.empty() && token.caller.name.size() <= kNameBytesMax);
    ANNULUS_CHECK(token.caller.role != Role::kTenant || !token.caller.tenant.empty());
  }
  for (const auto& [tenant, quotas] : file->quotas.by_tenant) {
    ANNULUS_CHECK(quotas.contexts_max >= 0 && quotas.creates_per_s_max >= 0);
  }
  return true;
}

bool TryKeys(absl::string_view text) {
  const absl::StatusOr<KeySet> keys = KeySet::Parse(text);
  if (!keys.ok()) {
    CheckRefusal(keys.status());
    return false;
  }
  ANNULUS_CHECK(keys->size() >= 1 && keys->size() <= kKeysMax);
  for (const char* algorithm : {"RS256", "ES256", "EdDSA", "none", "HS256"}) {
    ANNULUS_CHECK(!keys->Signed(algorithm, absl::nullopt, text, text));
  }
  return true;
}

bool TryToken(absl::string_view token) {
  static const KeySet* const keys = new KeySet(KeySet::Parse(kKeys).value());
  static const JwtRules* const rules =
      new JwtRules{.issuer = "i",
                   .audience = "annulus",
                   .tenant = {.claim = "/kubernetes.io/namespace", .otherwise = "lab"},
                   .role = {.claim = "role", .map = {{"root", "admin"}}, .otherwise = "reader"}};
  const absl::Time now = absl::FromUnixSeconds(1'800'000'000);
  const absl::StatusOr<Caller> caller = VerifyJwt(token, *keys, *rules, now);
  if (!caller.ok()) {
    CheckRefusal(caller.status());
    return false;
  }
  ANNULUS_CHECK(caller->expires > now && LooksLikeJwt(token));
  return true;
}

}  // namespace

bool TryIdentity(Bytes input) {
  switch (TakeByte(&input)) {
    case 'a':
      return TryAuthFile(Text(input));
    case 'k':
      return TryKeys(Text(input));
    case 't':
      return TryToken(Text(input));
    default:
      return false;
  }
}

}  // namespace annulus::fuzz
