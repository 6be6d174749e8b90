// Random bytes that nobody can guess, from the operating system. For keys, not for tests: those use
// rng.h. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace annulus {

// A machine that cannot give random bytes ends the process: a secret that can be guessed is none.
void FillRandom(absl::Span<std::byte> bytes);

// Never 0.
uint64_t RandomSecret();

// Takes as long for secrets that differ early as for those that differ late.
bool SameSecret(absl::string_view a, absl::string_view b);

}  // namespace annulus
