#include "runtime/identity/jwks.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/identity/encoding.h"
#include "runtime/identity/json_fields.h"

namespace annulus {
namespace {

// The text of a key's field, "" if it has none.
absl::StatusOr<std::string> TextOf(const Json& key, const char* field) {
  const Json* const found = Find(key, field);
  if (found == nullptr) return std::string();
  if (!found->is_string()) return Unexpected(field, *found, "a text");
  return found->get<std::string>();
}

absl::StatusOr<std::string> BytesOf(const Json& key, const char* field) {
  ANNULUS_ASSIGN_OR_RETURN(const std::string text, TextOf(key, field));
  const absl::optional<std::string> bytes = FromBase64Url(text);
  if (bytes.has_value() && !bytes->empty()) return *bytes;
  return Unexpected(field, text, "base64url without padding");
}

absl::StatusOr<PublicKey> RsaOf(const Json& key) {
  ANNULUS_ASSIGN_OR_RETURN(const std::string n, BytesOf(key, "n"));
  ANNULUS_ASSIGN_OR_RETURN(const std::string e, BytesOf(key, "e"));
  return PublicKey::Rsa(n, e);
}

absl::StatusOr<PublicKey> P256Of(const Json& key) {
  ANNULUS_ASSIGN_OR_RETURN(const std::string x, BytesOf(key, "x"));
  ANNULUS_ASSIGN_OR_RETURN(const std::string y, BytesOf(key, "y"));
  return PublicKey::P256(x, y);
}

absl::StatusOr<PublicKey> Ed25519Of(const Json& key) {
  ANNULUS_ASSIGN_OR_RETURN(const std::string x, BytesOf(key, "x"));
  return PublicKey::Ed25519(x);
}

struct Kind {
  absl::string_view kty;
  absl::string_view crv;
  KeyAlgorithm algorithm;
  absl::StatusOr<PublicKey> (*read)(const Json& key);
};
constexpr Kind kKinds[] = {{"RSA", "", KeyAlgorithm::kRs256, &RsaOf},
                           {"EC", "P-256", KeyAlgorithm::kEs256, &P256Of},
                           {"OKP", "Ed25519", KeyAlgorithm::kEdDsa, &Ed25519Of}};

// nullptr for keys of other kinds, algorithms and uses.
absl::StatusOr<const Kind*> KindOf(const Json& key) {
  ANNULUS_ASSIGN_OR_RETURN(const std::string kty, TextOf(key, "kty"));
  ANNULUS_ASSIGN_OR_RETURN(const std::string crv, TextOf(key, "crv"));
  ANNULUS_ASSIGN_OR_RETURN(const std::string alg, TextOf(key, "alg"));
  ANNULUS_ASSIGN_OR_RETURN(const std::string use, TextOf(key, "use"));
  if (kty.empty()) {
    return absl::InvalidArgumentError("kty: none, or empty; expected a key with its kind");
  }
  for (const Kind& kind : kKinds) {
    if (kind.kty != kty || kind.crv != crv) continue;
    const bool other =
        (!alg.empty() && alg != Name(kind.algorithm)) || (!use.empty() && use != "sig");
    return other ? nullptr : &kind;
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<KeySet> KeySet::Parse(absl::string_view json) {
  ANNULUS_ASSIGN_OR_RETURN(const Json object, ParseObject("keys", json));
  const Json* const list = Find(object, "keys");
  if (list == nullptr || !list->is_array() || list->size() > kKeysMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("keys: none, or no list; expected a list of 1 to ", kKeysMax));
  }
  std::vector<Key> keys;
  for (size_t i = 0; i < list->size(); ++i) {
    const Json& entry = (*list)[i];
    const std::string field = absl::StrCat("keys[", i, "]");
    if (!entry.is_object()) return Unexpected(field, entry, "an object");
    const auto read = [&]() -> absl::Status {
      ANNULUS_ASSIGN_OR_RETURN(const Kind* const kind, KindOf(entry));
      if (kind == nullptr) return absl::OkStatus();
      ANNULUS_ASSIGN_OR_RETURN(PublicKey key, kind->read(entry));
      absl::optional<std::string> id;
      if (entry.contains("kid")) {
        ANNULUS_ASSIGN_OR_RETURN(id, TextOf(entry, "kid"));
      }
      for (const Key& other : keys) {
        if (id.has_value() && other.id == id && other.key.algorithm() == key.algorithm()) {
          return UnexpectedName("kid", *id, "an id that no other key of the kind has");
        }
      }
      keys.push_back({std::move(id), std::move(key)});
      return absl::OkStatus();
    };
    if (const absl::Status status = read(); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(field, ".", status.message()));
    }
  }
  if (!keys.empty()) return KeySet(std::move(keys));
  return absl::InvalidArgumentError(
      absl::StrCat("keys: ", list->size(),
                   ", none of them for signatures by RS256, ES256 or EdDSA; expected one"));
}

bool KeySet::Signed(absl::string_view algorithm, const absl::optional<std::string>& id,
                    absl::string_view text, absl::string_view signature) const {
  for (const Key& key : keys_) {
    if (key.id == id && Name(key.key.algorithm()) == algorithm && key.key.Signed(text, signature)) {
      return true;
    }
  }
  return false;
}

}  // namespace annulus
