// Numbers for people, in units that fit. Pure functions.
#pragma once

#include <cstdint>
#include <string>

namespace annulus {

// "512 B", "1.50 MiB".
std::string BytesText(double bytes);
std::string BytesText(int64_t bytes);

// Three or four digits and the unit from ns to days: "0 s", "3.40 µs", "120 ms", "1.52 s",
// "12.1 min", "3.21 h", "8.88 days".
std::string SecondsText(double seconds);

}  // namespace annulus
