#include "runtime/cli/report/units.h"

#include <cmath>
#include <iterator>

#include "absl/strings/str_format.h"

namespace annulus {

std::string BytesText(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return absl::StrFormat(unit == 0 ? "%.0f %s" : "%.2f %s", bytes, kUnits[unit]);
}

std::string BytesText(int64_t bytes) {
  return BytesText(static_cast<double>(bytes));
}

std::string SecondsText(double seconds) {
  struct Unit {
    const char* name;
    double seconds;
  };
  constexpr Unit kUnits[] = {{"ns", 1e-9}, {"µs", 1e-6}, {"ms", 1e-3},   {"s", 1},
                             {"min", 60},  {"h", 3600},  {"days", 86400}};
  if (!(seconds > 0) || !std::isfinite(seconds)) return absl::StrFormat("%g s", seconds);
  size_t unit = 0;
  // What rounds to 1.00 of the next unit is told in that.
  while (unit + 1 < std::size(kUnits) && seconds >= 0.9995 * kUnits[unit + 1].seconds) {
    ++unit;
  }
  const double value = seconds / kUnits[unit].seconds;
  const int digits = value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return absl::StrFormat("%.*f %s", digits, value, kUnits[unit].name);
}

}  // namespace annulus
