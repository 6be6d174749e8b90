// What people read: units that fit, and columns that stay columns whatever is in them.
#include "runtime/cli/report/report.h"

#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "runtime/cli/demo/report.h"
#include "runtime/cli/report/table.h"
#include "runtime/cli/report/units.h"
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
    context.spec.layers = 2;
    context.tokens = {1, INT64_MAX};
    context.kv_bytes = INT64_MAX;
    context.dense_kv_bytes = 1;
    context.spec.owner = "maths";  // the last column is as wide as its title
    status.contexts.push_back(context);
  }
  CheckColumns(ToText(status), "worker ", 3);
  CheckColumns(ToText(status), "context ", 3);
}

TEST_CASE("a context's tokens are those of its longest layer, whatever its tracks have") {
  ContextInfo context;
  context.spec.layers = 2;
  CHECK(TokensOf(context) == 0);
  context.tokens = {5, 7, 900};
  CHECK(TokensOf(context) == 7);
}

TEST_CASE(
    "the demo's table keeps its columns at a GPU's speed, and names what it is held against") {
  DemoReport report;
  report.tokens = 1 << 20;
  report.workers = 4;
  report.upload_s = 1;
  report.read_bytes_per_s = 31e9;
  report.backend = "cuda (NVIDIA H100 80GB HBM3)";
  for (const double rate : {920.81e9, 17.3e9}) {
    DemoPhase phase;
    phase.name = "decode";
    phase.pattern = rate > 1e11 ? "causal" : "s2(64,16,4) | window(1048576)";
    phase.plan = "pass-q";
    phase.queries = 64;
    phase.elapsed_s = rate > 1e11 ? 1e-5 : 1;
    phase.recall.found = phase.recall.visible = rate > 1e11 ? 512 : 123456789;
    phase.kv_bytes_per_s = rate;
    phase.read_share = 10.32;
    phase.bytes_moved = INT64_MAX;
    phase.planned_bytes = 1;
    phase.work_pairs = {1, 1, 1, 1};
    report.phases.push_back(phase);
  }
  const std::string host = ToText(report);
  const std::vector<std::string> lines = absl::StrSplit(host, '\n');
  size_t column = 0;
  size_t rows = 0;
  for (const std::string& line : lines) {
    if (column == 0 && absl::StrContains(line, "work per")) column = line.find("work per");
    if (!absl::StartsWith(line, "decode")) continue;
    CHECK(line.find("25.0 25.0 25.0 25.0") == column);
    ++rows;
  }
  CHECK(rows == 2);
  CHECK(absl::StrContains(host, "  920.81 (1032%)  9223372036854775807  "));
  CHECK(absl::StrContains(host, "machine   reads 31.00 GB/s (the median of reads"));
  report.gpus = 2;
  report.read_bytes_per_s = 5.98e12;
  CHECK(absl::StrContains(ToText(report), "machine   2 GPUs read and write 5980.00 GB/s"));
}

}  // namespace
}  // namespace annulus
