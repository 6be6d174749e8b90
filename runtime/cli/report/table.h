// A table of texts for people, whose columns are as wide as what is in them. Not thread-safe.
#pragma once

#include <string>
#include <vector>

namespace annulus {

class Table {
 public:
  enum class Align { kLeft, kRight };
  struct Column {
    std::string title;
    Align align = Align::kRight;
  };

  explicit Table(std::vector<Column> columns);

  // As many cells as there are columns, each one line.
  void AddRow(std::vector<std::string> cells);

  // A line of the titles and one of each row, two blanks between columns and none at the end.
  std::string ToText() const;

 private:
  const std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;  // the titles first
};

}  // namespace annulus
