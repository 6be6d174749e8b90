#include "runtime/telemetry/trace.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "base/write_file.h"

namespace annulus {
namespace {

using Json = nlohmann::json;

// The rows of one process. Spans come by begin, the longer first; a row takes a span that nests in
// its innermost open one, or that begins after all of the row's have ended.
class Rows {
 public:
  size_t Place(const TraceSpan& span) {
    for (size_t row = 0; row < open_.size(); ++row) {
      std::vector<int64_t>& ends = open_[row];
      while (!ends.empty() && ends.back() <= span.begin_ns) ends.pop_back();
      if (ends.empty() || span.end_ns <= ends.back()) {
        ends.push_back(span.end_ns);
        return row;
      }
    }
    open_.push_back({span.end_ns});
    return open_.size() - 1;
  }

 private:
  std::vector<std::vector<int64_t>> open_;  // by row: ends of the open spans, innermost last
};

double Microseconds(int64_t ns) {
  return static_cast<double>(ns) / 1e3;
}

}  // namespace

std::string TraceJson(const std::vector<TraceSpan>& spans) {
  std::vector<TraceSpan> sorted = spans;
  for (TraceSpan& span : sorted) span.end_ns = std::max(span.begin_ns, span.end_ns);
  std::stable_sort(sorted.begin(), sorted.end(), [](const TraceSpan& a, const TraceSpan& b) {
    return a.begin_ns != b.begin_ns ? a.begin_ns < b.begin_ns : a.end_ns > b.end_ns;
  });
  const int64_t origin_ns = sorted.empty() ? 0 : sorted.front().begin_ns;

  // By name, so that the order of the processes does not depend on who was first this time.
  std::map<std::string, int> pids;
  for (const TraceSpan& span : sorted) pids[span.process] = 0;
  Json events = Json::array();
  int next_pid = 1;
  for (auto& [process, pid] : pids) {
    pid = next_pid++;
    events.push_back({{"name", "process_name"},
                      {"ph", "M"},
                      {"pid", pid},
                      {"tid", 0},
                      {"args", {{"name", process}}}});
    events.push_back({{"name", "process_sort_index"},
                      {"ph", "M"},
                      {"pid", pid},
                      {"tid", 0},
                      {"args", {{"sort_index", pid}}}});
  }
  std::map<int, Rows> rows;
  for (const TraceSpan& span : sorted) {
    const int pid = pids[span.process];
    events.push_back({{"name", span.name},
                      {"cat", "annulus"},
                      {"ph", "X"},
                      {"pid", pid},
                      {"tid", rows[pid].Place(span)},
                      {"ts", Microseconds(span.begin_ns - origin_ns)},
                      {"dur", Microseconds(span.end_ns - span.begin_ns)}});
  }
  const Json file = {{"traceEvents", std::move(events)},
                     {"displayTimeUnit", "ms"},
                     {"otherData", {{"origin_unix_ns", std::to_string(origin_ns)}}}};
  return file.dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::Status WriteTrace(const std::string& path, const std::vector<TraceSpan>& spans) {
  return WriteFile(path, {TraceJson(spans), "\n"});
}

}  // namespace annulus
