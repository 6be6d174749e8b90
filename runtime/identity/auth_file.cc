#include "runtime/identity/auth_file.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/identity/json_fields.h"
#include "runtime/limits.h"

namespace annulus {
namespace {

// One object of the file: its fields are taken one by one, and what is left is unknown.
class Fields {
 public:
  // INVALID_ARGUMENT unless `object` is one.
  static absl::StatusOr<Fields> Of(std::string path, const Json& object) {
    if (!object.is_object()) return Unexpected(path, object, "an object");
    return Fields(std::move(path), object);
  }

  std::string PathOf(absl::string_view field) const {
    return path_.empty() ? std::string(field) : absl::StrCat(path_, ".", field);
  }

  // nullptr if there is no such field.
  const Json* Take(const char* field) {
    taken_.insert(field);
    return Find(object_, field);
  }

  // A text of 1 to kNameBytesMax bytes; nullopt if there is no such field.
  absl::StatusOr<absl::optional<std::string>> TakeText(const char* field) {
    const Json* const value = Take(field);
    if (value == nullptr) return absl::optional<std::string>();
    ANNULUS_ASSIGN_OR_RETURN(std::string text, TextOf(PathOf(field), *value));
    return absl::optional<std::string>(std::move(text));
  }
  absl::StatusOr<std::string> RequireText(const char* field, absl::string_view expected) {
    ANNULUS_ASSIGN_OR_RETURN(absl::optional<std::string> text, TakeText(field));
    if (text.has_value()) return *std::move(text);
    return absl::InvalidArgumentError(absl::StrCat(PathOf(field), ": none; expected ", expected));
  }

  static absl::StatusOr<std::string> TextOf(absl::string_view path, const Json& value) {
    if (!value.is_string() || value.get_ref<const std::string&>().empty() ||
        value.get_ref<const std::string&>().size() > kNameBytesMax) {
      return Unexpected(path, value, absl::StrCat("a text of 1 to ", kNameBytesMax, " bytes"));
    }
    return value.get<std::string>();
  }

  // Refuses what has not been taken.
  absl::Status End() const {
    for (const auto& [name, value] : object_.items()) {
      if (taken_.count(name) != 0) continue;
      std::string known;
      for (const std::string& field : taken_) {
        absl::StrAppend(&known, known.empty() ? "" : ", ", field);
      }
      return absl::InvalidArgumentError(absl::StrCat("field ", ToldName(name), " of ",
                                                     path_.empty() ? "the file" : path_,
                                                     ": unknown; expected one of ", known));
    }
    return absl::OkStatus();
  }

  const Json& object() const { return object_; }

 private:
  Fields(std::string path, const Json& object) : path_(std::move(path)), object_(object) {}

  std::string path_;
  const Json& object_;
  std::set<std::string> taken_;
};

// name, tenant and role, which tokens and certificates have.
absl::StatusOr<Caller> CallerOf(Fields* fields) {
  Caller caller;
  ANNULUS_ASSIGN_OR_RETURN(caller.name, fields->RequireText("name", "a name for logs"));
  ANNULUS_ASSIGN_OR_RETURN(const std::string role, fields->RequireText("role", kRolesText));
  const absl::optional<Role> known = RoleOf(role);
  if (!known.has_value()) return UnexpectedName(fields->PathOf("role"), role, kRolesText);
  caller.role = *known;
  const Json* const tenant = fields->Take("tenant");
  if (tenant != nullptr && *tenant != "") {
    ANNULUS_ASSIGN_OR_RETURN(caller.tenant, Fields::TextOf(fields->PathOf("tenant"), *tenant));
    if (caller.tenant.size() > kTenantBytesMax) {
      return Unexpected(fields->PathOf("tenant"), *tenant,
                        absl::StrCat("a text of at most ", kTenantBytesMax, " bytes"));
    }
  }
  if (caller.role == Role::kTenant && caller.tenant.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        fields->PathOf("tenant"), ": none; expected a name, since the role is tenant"));
  }
  return caller;
}

// The entries of a list, each by `read`.
template <typename Read>
absl::Status ReadList(const char* name, const Json& list, size_t entries_max, Read read) {
  if (!list.is_array() || list.size() > entries_max) {
    return Unexpected(name, list, absl::StrCat("a list of at most ", entries_max));
  }
  for (size_t i = 0; i < list.size(); ++i) {
    ANNULUS_ASSIGN_OR_RETURN(Fields fields, Fields::Of(absl::StrCat(name, "[", i, "]"), list[i]));
    ANNULUS_RETURN_IF_ERROR(read(&fields));
    ANNULUS_RETURN_IF_ERROR(fields.End());
  }
  return absl::OkStatus();
}

absl::Status ReadTokens(const Json& list, std::vector<AuthFile::Token>* tokens) {
  std::set<Sha256Digest> digests;
  return ReadList("tokens", list, kTokensMax, [&](Fields* fields) -> absl::Status {
    constexpr char kExpected[] = "64 hex digits, the token's SHA-256, which no other has";
    ANNULUS_ASSIGN_OR_RETURN(const std::string hex, fields->RequireText("sha256", kExpected));
    const absl::optional<Sha256Digest> digest = DigestFromHex(hex);
    if (!digest.has_value()) return Unexpected(fields->PathOf("sha256"), hex, kExpected);
    if (!digests.insert(*digest).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(fields->PathOf("sha256"), ": that of another entry; expected ", kExpected));
    }
    ANNULUS_ASSIGN_OR_RETURN(Caller caller, CallerOf(fields));
    tokens->push_back({*digest, std::move(caller)});
    return absl::OkStatus();
  });
}

absl::Status ReadCertificates(const Json& list, std::vector<Caller>* certificates) {
  std::set<std::string> names;
  return ReadList("certificates", list, kTokensMax, [&](Fields* fields) -> absl::Status {
    ANNULUS_ASSIGN_OR_RETURN(Caller caller, CallerOf(fields));
    if (!names.insert(caller.name).second) {
      return UnexpectedName(fields->PathOf("name"), caller.name, "a name that no other has");
    }
    certificates->push_back(std::move(caller));
    return absl::OkStatus();
  });
}

absl::Status CheckClaim(const std::string& path, const std::string& claim) {
  if (claim[0] != '/') return absl::OkStatus();
  try {
    (void)Json::json_pointer(claim);
    return absl::OkStatus();
  } catch (const Json::exception&) {
    return UnexpectedName(path, claim, "a claim's name or a JSON pointer");
  }
}

// A claim by its name, or an object with what becomes of its values.
absl::StatusOr<ClaimRule> RuleOf(const std::string& path, const Json& json) {
  ClaimRule rule;
  if (json.is_string()) {
    ANNULUS_ASSIGN_OR_RETURN(rule.claim, Fields::TextOf(path, json));
    ANNULUS_RETURN_IF_ERROR(CheckClaim(path, rule.claim));
    return rule;
  }
  ANNULUS_ASSIGN_OR_RETURN(Fields fields, Fields::Of(path, json));
  ANNULUS_ASSIGN_OR_RETURN(const absl::optional<std::string> claim, fields.TakeText("claim"));
  ANNULUS_ASSIGN_OR_RETURN(rule.otherwise, fields.TakeText("default"));
  if (const Json* const map = fields.Take("map")) {
    if (!map->is_object()) return Unexpected(fields.PathOf("map"), *map, "an object");
    for (const auto& [value, text] : map->items()) {
      ANNULUS_ASSIGN_OR_RETURN(
          rule.map[value],
          Fields::TextOf(absl::StrCat(fields.PathOf("map"), "[", Quoted(value), "]"), text));
    }
  }
  ANNULUS_RETURN_IF_ERROR(fields.End());
  if (claim.has_value()) {
    rule.claim = *claim;
    ANNULUS_RETURN_IF_ERROR(CheckClaim(fields.PathOf("claim"), rule.claim));
  } else if (!rule.otherwise.has_value() || !rule.map.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.PathOf("claim"), ": none; expected a claim's name, or only a default"));
  }
  return rule;
}

// The texts that a rule for roles gives by itself must be roles.
absl::Status CheckRoles(const std::string& path, const ClaimRule& rule) {
  std::vector<std::string> texts;
  for (const auto& [value, text] : rule.map) texts.push_back(text);
  if (rule.otherwise.has_value()) texts.push_back(*rule.otherwise);
  for (const std::string& text : texts) {
    if (!RoleOf(text).has_value()) return UnexpectedName(path, text, kRolesText);
  }
  return absl::OkStatus();
}

absl::StatusOr<AuthFile::Jwt> JwtOf(const Json& json) {
  ANNULUS_ASSIGN_OR_RETURN(Fields fields, Fields::Of("jwt", json));
  AuthFile::Jwt jwt;
  ANNULUS_ASSIGN_OR_RETURN(jwt.jwks, fields.RequireText("jwks", "the path of a JWKS file"));
  ANNULUS_ASSIGN_OR_RETURN(jwt.rules.issuer, fields.RequireText("issuer", "what iss must be"));
  ANNULUS_ASSIGN_OR_RETURN(jwt.rules.audience,
                           fields.RequireText("audience", "what aud must have"));
  if (const Json* const claims = fields.Take("claims")) {
    ANNULUS_ASSIGN_OR_RETURN(Fields rules, Fields::Of("jwt.claims", *claims));
    if (const Json* const tenant = rules.Take("tenant")) {
      ANNULUS_ASSIGN_OR_RETURN(jwt.rules.tenant, RuleOf(rules.PathOf("tenant"), *tenant));
    }
    if (const Json* const role = rules.Take("role")) {
      ANNULUS_ASSIGN_OR_RETURN(jwt.rules.role, RuleOf(rules.PathOf("role"), *role));
      ANNULUS_RETURN_IF_ERROR(CheckRoles(rules.PathOf("role"), jwt.rules.role));
    }
    ANNULUS_RETURN_IF_ERROR(rules.End());
  }
  ANNULUS_RETURN_IF_ERROR(fields.End());
  return jwt;
}

struct Quota {
  const char* name;
  int64_t TenantQuotas::*value;
};
constexpr Quota kQuotas[] = {{"contexts_max", &TenantQuotas::contexts_max},
                             {"kv_bytes_max", &TenantQuotas::kv_bytes_max},
                             {"calls_in_flight_max", &TenantQuotas::calls_in_flight_max},
                             {"bytes_in_flight_max", &TenantQuotas::bytes_in_flight_max},
                             {"streams_max", &TenantQuotas::streams_max},
                             {"creates_per_s_max", &TenantQuotas::creates_per_s_max}};

absl::StatusOr<TenantQuotas> QuotasOf(const std::string& path, const Json& json,
                                      const TenantQuotas& of_others) {
  ANNULUS_ASSIGN_OR_RETURN(Fields fields, Fields::Of(path, json));
  TenantQuotas quotas = of_others;
  for (const Quota& quota : kQuotas) {
    const Json* const value = fields.Take(quota.name);
    if (value == nullptr) continue;
    if (!value->is_number_unsigned() || value->get<uint64_t>() > uint64_t{kNoQuota}) {
      return UnexpectedName(fields.PathOf(quota.name), *value, "an integer from 0 on");
    }
    quotas.*quota.value = value->get<int64_t>();
  }
  ANNULUS_RETURN_IF_ERROR(fields.End());
  return quotas;
}

absl::StatusOr<Quotas> QuotasOf(const Json& json) {
  constexpr char kDefault[] = "default";
  ANNULUS_ASSIGN_OR_RETURN(Fields fields, Fields::Of("quotas", json));
  Quotas quotas;
  if (const Json* const others = fields.Take(kDefault)) {
    ANNULUS_ASSIGN_OR_RETURN(quotas.of_others, QuotasOf("quotas.default", *others, {}));
  }
  if (json.size() > kQuotaTenantsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("quotas: ", json.size(), " tenants; expected at most ", kQuotaTenantsMax));
  }
  for (const auto& [tenant, entry] : json.items()) {
    if (tenant == kDefault) continue;
    ANNULUS_ASSIGN_OR_RETURN(
        quotas.by_tenant[tenant],
        QuotasOf(absl::StrCat("quotas[", Quoted(tenant), "]"), entry, quotas.of_others));
  }
  return quotas;
}

}  // namespace

absl::StatusOr<AuthFile> ParseAuthFile(absl::string_view json) {
  ANNULUS_ASSIGN_OR_RETURN(const Json object, ParseObject("content", json));
  ANNULUS_ASSIGN_OR_RETURN(Fields fields, Fields::Of("", object));
  AuthFile file;
  if (const Json* const tokens = fields.Take("tokens")) {
    ANNULUS_RETURN_IF_ERROR(ReadTokens(*tokens, &file.tokens));
  }
  if (const Json* const certificates = fields.Take("certificates")) {
    ANNULUS_RETURN_IF_ERROR(ReadCertificates(*certificates, &file.certificates));
  }
  if (const Json* const jwt = fields.Take("jwt")) {
    ANNULUS_ASSIGN_OR_RETURN(file.jwt, JwtOf(*jwt));
  }
  if (const Json* const quotas = fields.Take("quotas")) {
    ANNULUS_ASSIGN_OR_RETURN(file.quotas, QuotasOf(*quotas));
  }
  ANNULUS_RETURN_IF_ERROR(fields.End());
  if (!file.tokens.empty() || !file.certificates.empty() || file.jwt.has_value()) return file;
  return absl::InvalidArgumentError(
      "content: nobody is known; expected tokens, certificates or jwt");
}

}  // namespace annulus
