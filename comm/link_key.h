// LinkKey: a secret of 128 bits that the two ends of a connection know and nobody else. Every piece
// of every message between them carries it, so that nobody can speak in another's name or end
// another's connection. A KeyRing holds the keys that a messenger admits. Values; not thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>

#include "absl/strings/string_view.h"
#include "base/secret.h"

namespace annulus {

struct LinkKey {
  static constexpr size_t kBytes = 16;

  static LinkKey Random() {
    LinkKey key;
    FillRandom({reinterpret_cast<std::byte*>(key.bytes.data()), kBytes});
    return key;
  }

  absl::string_view view() const { return {bytes.data(), kBytes}; }
  friend bool operator==(const LinkKey& a, const LinkKey& b) {
    return SameSecret(a.view(), b.view());
  }

  std::array<char, kBytes> bytes = {};
};

class KeyRing {
 public:
  void Add(const LinkKey& key) { keys_[Half(key)] = key; }
  void Remove(const LinkKey& key) {
    if (Has(key)) keys_.erase(Half(key));
  }
  // Half of a key finds its place, which its time may tell; the whole decides.
  bool Has(const LinkKey& key) const {
    const auto it = keys_.find(Half(key));
    return it != keys_.end() && it->second == key;
  }

 private:
  static uint64_t Half(const LinkKey& key) {
    uint64_t half = 0;
    std::memcpy(&half, key.bytes.data(), sizeof half);
    return half;
  }

  std::map<uint64_t, LinkKey> keys_;
};

}  // namespace annulus
