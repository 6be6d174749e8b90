// KeySet: the public keys of whoever issues tokens, a JSON Web Key Set (RFC 7517). A key is good
// for one algorithm, which follows from its kind: RS256 for RSA, ES256 for P-256, EdDSA for Ed25519
// (RFC 7518, RFC 8037). What a token says of its algorithm chooses nothing. Immutable; thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"
#include "runtime/identity/public_key.h"

namespace annulus {

inline constexpr size_t kKeysMax = 256;

class KeySet {
 public:
  // Keys of other kinds and uses are left out, as RFC 7517, section 5 wants. INVALID_ARGUMENT names
  // the field that is spoilt, or says that no key is left.
  static absl::StatusOr<KeySet> Parse(absl::string_view json);

  size_t size() const { return keys_.size(); }

  // Whether a key of this id and algorithm has made this signature of `text`. A token without an id
  // is tried with the keys that have none.
  bool Signed(absl::string_view algorithm, const absl::optional<std::string>& id,
              absl::string_view text, absl::string_view signature) const;

 private:
  struct Key {
    absl::optional<std::string> id;
    PublicKey key;
  };
  explicit KeySet(std::vector<Key> keys) : keys_(std::move(keys)) {}

  std::vector<Key> keys_;
};

}  // namespace annulus
