#include "runtime/identity/jwt.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "runtime/identity/encoding.h"
#include "runtime/identity/json_fields.h"
#include "runtime/limits.h"

namespace annulus {
namespace {

constexpr double kSecondsMax = 253402300799;  // the end of the year 9999

// One of a token's parts that are JSON.
absl::StatusOr<Json> ObjectOf(absl::string_view what, absl::string_view part) {
  const absl::optional<std::string> text = FromBase64Url(part);
  if (text.has_value()) return ParseObject(what, *text);
  return absl::InvalidArgumentError(absl::StrCat(what, ": no base64url; expected it"));
}

// What a known key has signed is no secret.
absl::Status UnexpectedClaim(absl::string_view field, const Json& claim,
                             absl::string_view expected) {
  const std::string text = claim.is_string() ? Quoted(claim.get<std::string>())
                                             : claim.dump(-1, ' ', /*ensure_ascii=*/true,
                                                          Json::error_handler_t::replace);
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", absl::string_view(text).substr(0, 100), "; expected ", expected));
}

absl::Status Absent(absl::string_view field, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": none; expected ", expected));
}

// Who the header says has signed: an algorithm and maybe a key's id.
absl::StatusOr<std::pair<std::string, absl::optional<std::string>>> SignerOf(const Json& header) {
  const Json* const algorithm = Find(header, "alg");
  if (algorithm == nullptr) return Absent("alg", "RS256, ES256 or EdDSA");
  if (!algorithm->is_string()) return Unexpected("alg", *algorithm, "RS256, ES256 or EdDSA");
  // It names extensions that a reader must understand; there are none here.
  if (const Json* const critical = Find(header, "crit")) {
    return Unexpected("crit", *critical, "none");
  }
  const Json* const id = Find(header, "kid");
  if (id == nullptr) return std::pair(algorithm->get<std::string>(), absl::nullopt);
  if (!id->is_string()) return Unexpected("kid", *id, "a text");
  return std::pair(algorithm->get<std::string>(),
                   absl::optional<std::string>(id->get<std::string>()));
}

absl::StatusOr<absl::Time> TimeOf(absl::string_view field, const Json& claim) {
  const double seconds = claim.is_number() ? claim.get<double>() : NAN;
  if (seconds >= 0 && seconds <= kSecondsMax) {
    return absl::UnixEpoch() + absl::Seconds(seconds);
  }
  return UnexpectedClaim(field, claim, "seconds since 1970");
}

absl::StatusOr<absl::Time> ValidUntil(const Json& claims, absl::Time now) {
  const Json* const expiry = Find(claims, "exp");
  if (expiry == nullptr) return Absent("exp", "when the token expires");
  ANNULUS_ASSIGN_OR_RETURN(const absl::Time until, TimeOf("exp", *expiry));
  if (now >= until + kJwtLeeway) return UnexpectedClaim("exp", *expiry, "a time to come");
  if (const Json* const begin = Find(claims, "nbf")) {
    ANNULUS_ASSIGN_OR_RETURN(const absl::Time from, TimeOf("nbf", *begin));
    if (now < from - kJwtLeeway) return UnexpectedClaim("nbf", *begin, "a time that has come");
  }
  return until + kJwtLeeway;
}

absl::Status CheckIssued(const Json& claims, const JwtRules& rules) {
  const Json* const issuer = Find(claims, "iss");
  if (issuer == nullptr) return Absent("iss", rules.issuer);
  if (*issuer != rules.issuer) return UnexpectedClaim("iss", *issuer, rules.issuer);
  const Json* const audience = Find(claims, "aud");
  if (audience == nullptr) return Absent("aud", rules.audience);
  const bool meant = audience->is_array() ? std::find(audience->begin(), audience->end(),
                                                      Json(rules.audience)) != audience->end()
                                          : *audience == rules.audience;
  return meant ? absl::OkStatus() : UnexpectedClaim("aud", *audience, rules.audience);
}

// The claim that a rule names, or nullptr.
const Json* ClaimOf(const Json& claims, const std::string& name) {
  if (name.empty()) return nullptr;
  if (name[0] != '/') return Find(claims, name.c_str());
  const Json::json_pointer pointer(name);  // the rule's reader has checked it
  return claims.contains(pointer) ? &claims.at(pointer) : nullptr;
}

absl::StatusOr<std::string> TextBy(absl::string_view field, const ClaimRule& rule,
                                   const Json& claims) {
  const Json* const claim = ClaimOf(claims, rule.claim);
  if (claim != nullptr && claim->is_string()) {
    std::string value = claim->get<std::string>();
    if (rule.map.empty()) return value;
    if (const auto found = rule.map.find(value); found != rule.map.end()) return found->second;
  }
  if (rule.otherwise.has_value()) return *rule.otherwise;
  const Json none;
  return UnexpectedClaim(absl::StrCat(field, " by the claim ", rule.claim),
                         claim == nullptr ? none : *claim,
                         rule.map.empty() ? "a text" : "a value of the map");
}

}  // namespace

bool LooksLikeJwt(absl::string_view token) {
  return std::count(token.begin(), token.end(), '.') == 2;
}

absl::StatusOr<Caller> VerifyJwt(absl::string_view token, const KeySet& keys, const JwtRules& rules,
                                 absl::Time now) {
  const std::vector<absl::string_view> parts = absl::StrSplit(token, '.');
  if (parts.size() != 3) {
    return absl::InvalidArgumentError(
        absl::StrCat("token: ", parts.size(), " parts; expected header.claims.signature"));
  }
  ANNULUS_ASSIGN_OR_RETURN(const Json header, ObjectOf("header", parts[0]));
  ANNULUS_ASSIGN_OR_RETURN(const auto signer, SignerOf(header));
  const absl::optional<std::string> signature = FromBase64Url(parts[2]);
  if (!signature.has_value()) {
    return absl::InvalidArgumentError("signature: no base64url; expected it");
  }
  const absl::string_view text = token.substr(0, parts[0].size() + 1 + parts[1].size());
  const auto& [algorithm, key_id] = signer;
  if (!keys.Signed(algorithm, key_id, text, *signature)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "signature: by no known key with alg ", Quoted(algorithm), " and kid ",
        key_id.has_value() ? Quoted(*key_id) : "(none)", "; expected one of ", keys.size()));
  }
  ANNULUS_ASSIGN_OR_RETURN(const Json claims, ObjectOf("claims", parts[1]));
  ANNULUS_RETURN_IF_ERROR(CheckIssued(claims, rules));
  Caller caller;
  ANNULUS_ASSIGN_OR_RETURN(caller.expires, ValidUntil(claims, now));
  ANNULUS_ASSIGN_OR_RETURN(caller.tenant, TextBy("tenant", rules.tenant, claims));
  ANNULUS_ASSIGN_OR_RETURN(const std::string role, TextBy("role", rules.role, claims));
  const absl::optional<Role> known = RoleOf(role);
  if (!known.has_value()) return UnexpectedClaim("role", role, kRolesText);
  caller.role = *known;
  if (caller.tenant.size() > kTenantBytesMax ||
      (caller.tenant.empty() && caller.role == Role::kTenant)) {
    return UnexpectedClaim("tenant", caller.tenant,
                           absl::StrCat("a text of 1 to ", kTenantBytesMax, " bytes"));
  }
  const Json* const subject = Find(claims, "sub");
  caller.name =
      subject != nullptr && subject->is_string() ? subject->get<std::string>() : caller.tenant;
  return caller;
}

}  // namespace annulus
