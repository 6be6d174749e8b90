#include "runtime/cli/options/variables.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace annulus {
namespace {

// Levenshtein's distance.
size_t Changes(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);  // of the letters of `a` so far to each start of `b`
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 0; i < a.size(); ++i) {
    size_t before = row[0]++;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = before + (a[i] == b[j] ? 0 : 1);
      before = row[j + 1];
      row[j + 1] = std::min({replaced, before + 1, row[j] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::vector<std::string> VariablesIn(absl::string_view help) {
  const std::string mark = absl::StrCat("[", kVariablePrefix);
  std::vector<std::string> names;
  while (true) {
    const size_t begin = help.find(mark);
    const size_t end = help.find(']', std::min(begin, help.size()));
    if (end == absl::string_view::npos) return names;
    names.emplace_back(help.substr(begin + 1, end - begin - 1));
    help.remove_prefix(end);
  }
}

bool IsOfService(absl::string_view name) {
  return absl::EndsWith(name, "_SERVICE_HOST") || absl::EndsWith(name, "_PORT") ||
         absl::StrContains(name, "_PORT_");
}

std::string NearestTo(absl::string_view name, const std::vector<std::string>& known) {
  ANNULUS_CHECK(!known.empty());
  return *std::min_element(known.begin(), known.end(), [&](const auto& a, const auto& b) {
    return Changes(name, a) < Changes(name, b);
  });
}

}  // namespace annulus
