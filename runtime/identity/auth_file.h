// The file of --auth: whom the service knows. JSON, one object:
//   "tokens":       [{"name": "ann", "sha256": "…64 hex digits…", "tenant": "lab", "role":
//   "tenant"}]
//                   bearer tokens by their SHA-256: the file holds no secret
//   "certificates": [{"name": "w1.example", "tenant": "", "role": "worker"}]
//                   client certificates, by a subject alternative name or the common name
//   "jwt":          {"jwks": "keys.json", "issuer": "https://…", "audience": "annulus",
//                    "claims": {"tenant": "/kubernetes.io/namespace", "role": …}}
//                   signed tokens. jwks: a file, by its path from this one. A claim is a name or a
//                   JSON pointer, or {"claim": …, "map": {value: text}, "default": text}; without
//                   claims the tenant is "sub" and the role tenant
//   "quotas":       {"default": {"contexts_max": 100, …}, "lab": {…}}, as quotas.h has them; what a
//                   tenant's entry leaves out is the default's
// All are optional, and one of the first three must be there. Roles are those of caller.h. Pure
// function, thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"
#include "runtime/identity/caller.h"
#include "runtime/identity/encoding.h"
#include "runtime/identity/jwt.h"
#include "runtime/identity/quotas.h"

namespace annulus {

inline constexpr size_t kTokensMax = 4096;        // and as many certificates
inline constexpr size_t kQuotaTenantsMax = 4096;  // entries of quotas
inline constexpr size_t kNameBytesMax = 256;      // of callers and tenants

struct AuthFile {
  struct Token {
    Sha256Digest digest = {};
    Caller caller = {};
  };
  struct Jwt {
    std::string jwks;  // path
    JwtRules rules = {};
  };

  std::vector<Token> tokens;
  std::vector<Caller> certificates;  // by name
  absl::optional<Jwt> jwt;
  Quotas quotas;
};

// INVALID_ARGUMENT names the field, its value and what was expected.
absl::StatusOr<AuthFile> ParseAuthFile(absl::string_view json);

}  // namespace annulus
