#include "base/secret.h"

#include <sys/random.h>

#include <cerrno>

#include "base/check.h"

namespace annulus {

void FillRandom(absl::Span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t got = getrandom(bytes.data(), bytes.size(), 0);
    ANNULUS_CHECK(got > 0 || errno == EINTR);
    if (got > 0) bytes.remove_prefix(static_cast<size_t>(got));
  }
}

uint64_t RandomSecret() {
  uint64_t secret = 0;
  while (secret == 0) FillRandom({reinterpret_cast<std::byte*>(&secret), sizeof secret});
  return secret;
}

bool SameSecret(absl::string_view a, absl::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned char differs = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    differs |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]);
  }
  return differs == 0;
}

}  // namespace annulus
