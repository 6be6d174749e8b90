// JSON Web Tokens (RFC 7519) as bearer tokens: who the caller is stands in the token itself, signed
// by an issuer whose public keys are known. Pure functions, thread-safe.
#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "runtime/identity/caller.h"
#include "runtime/identity/jwks.h"

namespace annulus {

// By how much the clocks of an issuer and of this machine may differ.
inline constexpr absl::Duration kJwtLeeway = absl::Seconds(5);

// Takes a text from a token's claims.
struct ClaimRule {
  // A claim's name, or a JSON pointer (RFC 6901) where it begins with '/':
  // "/kubernetes.io/namespace".
  std::string claim;
  // The text for each value of the claim; empty: the value itself.
  std::map<std::string, std::string> map = {};
  // The text where there is no such claim, or no such value; none: such a token is refused.
  absl::optional<std::string> otherwise = absl::nullopt;
};

struct JwtRules {
  std::string issuer;    // as the claim iss
  std::string audience;  // that the claim aud has among others
  ClaimRule tenant = {.claim = "sub"};
  ClaimRule role = {.claim = "", .otherwise = "tenant"};
};

// Whether a bearer token looks like a JWT at all: three parts between dots.
bool LooksLikeJwt(absl::string_view token);

// The caller of a token that one of the keys has signed, which is meant for us and valid now;
// `expires` is the end of its validity and of the leeway. INVALID_ARGUMENT says why it is refused,
// for logs: to whoever brought it, all reasons read alike.
absl::StatusOr<Caller> VerifyJwt(absl::string_view token, const KeySet& keys, const JwtRules& rules,
                                 absl::Time now);

}  // namespace annulus
