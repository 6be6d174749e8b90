// What `annulus quality` says of each pattern. Pure functions.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "runtime/cli/quality/measure.h"

namespace annulus {

struct QualityRow {
  std::string pattern;                   // or the rule by which a context is compressed
  std::optional<MassFigures> mass = {};  // absent where the task was not asked for
  std::optional<RecallFigures> needle = {};
  std::optional<RecallFigures> mqar = {};
};

// A table for people.
std::string QualityText(absl::Span<const QualityRow> rows);
// A line each; the same names as the columns of QualityCsv.
std::string QualityJson(absl::Span<const QualityRow> rows);
// A header, and a line each; what is absent is empty.
std::string QualityCsv(absl::Span<const QualityRow> rows);

}  // namespace annulus
