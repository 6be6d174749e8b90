// One row of a benchmark's result, its columns in order, as a line of CSV or of JSON: the two say
// the same. A value that was not measured is JSON's null and CSV's empty field. A value.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace annulus {

class Columns {
 public:
  using Value = std::variant<std::monostate, bool, int64_t, double, std::string>;

  Columns(std::initializer_list<std::pair<const char*, Value>> columns) : columns_(columns) {}

  std::string CsvHeader() const;
  std::string CsvLine() const;
  std::string JsonLine() const;

 private:
  std::vector<std::pair<const char*, Value>> columns_;
};

}  // namespace annulus
