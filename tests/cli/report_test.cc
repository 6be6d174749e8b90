// What people read: units that fit, and columns that stay columns whatever is in them.
#include "runtime/cli/report.h"

#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "runtime/cli/table.h"
#include "runtime/cli/units.h"
#include "tests/catch.h"

namespace annulus {
namespace {

TEST_CASE("seconds are told in the unit that fits") {
  const std::pair<double, const char*> cases[] = {{0, "0 s"},
                                                  {3e-9, "3.00 ns"},
                                                  {1.25e-6, "1.25 µs"},
                                                  {47.1e-6, "47.1 µs"},
                                                  {0.9999e-3, "1.00 ms"},
                                                  {0.12, "120 ms"},
                                                  {1.5, "1.50 s"},
                                                  {59.9, "59.9 s"},
                                                  {60, "1.00 min"},
                                                  {727, "12.1 min"},
                                                  {3600, "1.00 h"},
                                                  {86399.9, "1.00 days"},
                                                  {767193.290442, "8.88 days"},
                                                  {1e9, "11574 days"}};
  for (const auto& [seconds, text] : cases) CHECK(SecondsText(seconds) == text);
}

TEST_CASE("bytes are told in the unit that fits") {
  CHECK(BytesText(int64_t{0}) == "0 B");
  CHECK(BytesText(int64_t{1023}) == "1023 B");
  CHECK(BytesText(int64_t{1536}) == "1.50 KiB");
  CHECK(BytesText(int64_t{3} << 40) == "3.00 TiB");
}

TEST_CASE("a table is as wide as its cells, in characters") {
  Table table({{"a", Table::Align::kLeft}, {"b"}, {"", Table::Align::kLeft}});
  table.AddRow({"x", "1 µs", ""});
  table.AddRow({"longer", "22", "chosen"});
  CHECK(table.ToText() ==
        "a          b\n"
        "x       1 µs\n"
        "longer    22  chosen\n");
}

// Every line of a table has the last of its columns' ends at the same places.
void CheckColumns(absl::string_view text, absl::string_view title, size_t lines) {
  const std::vector<std::string> all = absl::StrSplit(text, '\n', absl::SkipEmpty());
  size_t first = 0;
  while (first < all.size() && !absl::StartsWith(all[first], title)) ++first;
  REQUIRE(first + lines < all.size());
  std::set<size_t> widths;
  for (size_t i = first; i <= first + lines; ++i) widths.insert(all[i].size());
  CAPTURE(std::string(text.data(), text.size()));
  CHECK(widths.size() == 1);
}

TEST_CASE("status keeps its columns whatever their content") {
  ClusterStatus status;
  status.epoch = UINT64_MAX;
  const std::string backend = "cpu (AVX3+AVX512_BF16; built without CUDA)";
  for (const auto& [id, state] : {std::pair<uint64_t, const char*>{1, "ready"},
                                  {UINT64_MAX, "draining"},
                                  {3, "a state that is not there today"}}) {
    WorkerStatus worker;
    worker.id = id;
    worker.state = state;
    worker.backend = id == 1 ? "cuda" : backend;
    worker.kv_bytes = INT64_MAX;
    worker.kv_bytes_limit = id == 3 ? 0 : INT64_MAX;
    worker.heartbeat_age_s = id == 3 ? 12345.6 : 0.01;
    status.workers.push_back(worker);
    ContextInfo context;
    context.id = id;
    context.state = state;
    context.epoch = id;
    context.tokens = {1, INT64_MAX};
    context.kv_bytes = INT64_MAX;
    context.dense_kv_bytes = 1;
    status.contexts.push_back(context);
  }
  CheckColumns(ToText(status), "worker ", 3);
  CheckColumns(ToText(status), "context ", 3);
}

}  // namespace
}  // namespace annulus
