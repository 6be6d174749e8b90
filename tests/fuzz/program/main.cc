// One target as a libFuzzer program; ANNULUS_FUZZ_TARGET is its name.
#include <cstdint>

#include "tests/fuzz/targets/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  for (const annulus::fuzz::Target& target : annulus::fuzz::kTargets) {
    if (target.name == ANNULUS_FUZZ_TARGET) {
      target.run({reinterpret_cast<const std::byte*>(data), size});
      return 0;
    }
  }
  __builtin_trap();
}
