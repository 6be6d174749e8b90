// Integer division that rounds one way for every sign, and where two progressions meet. Pure
// functions, shared by block sets and patterns.
#pragma once

#include <cstdint>
#include <numeric>
#include <utility>

namespace annulus {

// b > 0 in all three.
constexpr int64_t FloorDiv(int64_t a, int64_t b) {
  return a / b - (a % b < 0 ? 1 : 0);
}
constexpr int64_t CeilDiv(int64_t a, int64_t b) {
  return a / b + (a % b > 0 ? 1 : 0);
}
constexpr int64_t FloorMod(int64_t a, int64_t b) {
  return a % b < 0 ? a % b + b : a % b;
}

// The inverse of `a` modulo `m`, which have no common factor (extended Euclidean algorithm).
inline int64_t InverseModulo(int64_t a, int64_t m) {
  int64_t old_r = a % m, r = m, old_s = 1, s = 0;
  while (r != 0) {
    const int64_t q = old_r / r;
    old_r = std::exchange(r, old_r - q * r);
    old_s = std::exchange(s, old_s - q * s);
  }
  return FloorMod(old_s, m);
}

// The numbers ≡ a (mod a_step) and ≡ b (mod b_step) from `low` on: first + i·step. Their step may
// exceed 64 bits, hence the type. `found` is false if there are none.
struct CommonNumbers {
  bool found = false;
  __int128 first = 0;
  __int128 step = 1;
};

inline CommonNumbers Meet(int64_t a, int64_t a_step, int64_t b, int64_t b_step, int64_t low) {
  const int64_t common = std::gcd(a_step, b_step);
  if ((b - a) % common != 0) return {};
  const int64_t m = b_step / common;
  // a + a_step·t ≡ b (mod b_step).
  const __int128 t =
      static_cast<__int128>(FloorMod((b - a) / common, m)) * InverseModulo(a_step / common, m) % m;
  const __int128 step = static_cast<__int128>(a_step) * m;
  const __int128 past = (a + t * a_step - low) % step;
  return {true, low + (past < 0 ? past + step : past), step};
}

}  // namespace annulus
