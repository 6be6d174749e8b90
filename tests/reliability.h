// What a test adds to the table of `./dev bench reliability` (bench/reliability/reliability.py,
// which reads the line), and how that asks it for more than an ordinary run does.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>

namespace annulus::test {

// One row: the fault, the load before it, what is asked for, and what was measured. `number` is the
// bar's own; several rows may share one.
struct ReliabilityRow {
  int number = 0;
  std::string fault;
  std::string load;
  std::string bar;
  std::string figure;
  bool met = false;
};

inline void Tell(const ReliabilityRow& row) {
  std::cout << "\nreliability\t" << row.number << '\t' << row.fault << '\t' << row.load << '\t'
            << row.bar << '\t' << row.figure << '\t' << (row.met ? "yes" : "no") << std::endl;
}

inline uint64_t NumberFromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

}  // namespace annulus::test
