#include "runtime/cli/report/status_page.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "runtime/cli/report/report.h"
#include "runtime/cli/report/units.h"

namespace annulus {
namespace {

std::string Escaped(absl::string_view text) {
  std::string safe = absl::StrReplaceAll(
      text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
  // A terminal that shows the page's source must not obey it.
  for (char& c : safe) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return safe;
}

std::string Row(const std::vector<std::string>& cells, const char* tag) {
  return absl::StrCat("<tr>",
                      absl::StrJoin(cells, "",
                                    [&](std::string* out, const std::string& cell) {
                                      absl::StrAppend(out, "<", tag, ">", cell, "</", tag, ">");
                                    }),
                      "</tr>\n");
}

std::string Page(absl::string_view title, const std::string& body) {
  return absl::StrCat(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>", Escaped(title),
      "</title>\n<style>body{font:14px/1.4 system-ui,sans-serif;margin:2em;color:#222}"
      "table{border-collapse:collapse;margin:1em 0}th,td{text-align:left;padding:2px 12px 2px 0;"
      "border-bottom:1px solid #ddd}meter{width:10em}</style></head>\n<body><h1>",
      Escaped(title), "</h1>\n", body, "</body></html>\n");
}

// Of a worker, the same wherever it is shown; neighbours differ. 0: nobody.
std::string ColourOf(WorkerId worker) {
  if (worker == 0) return "#eee";
  return absl::StrFormat("hsl(%d,60%%,%d%%)", worker * 137 % 360, 45 + worker % 3 * 10);
}

// Who answers for the context, from its first token to its last.
std::string MapBar(const ContextPlaces& places) {
  constexpr int kPartWidth = 5;
  std::string parts;
  for (size_t begin = 0, end = 0; begin < places.parts.size(); begin = end) {
    const WorkerId worker = places.parts[begin];
    while (end < places.parts.size() && places.parts[end] == worker) ++end;
    absl::StrAppendFormat(
        &parts, "<rect x=\"%d\" width=\"%d\" height=\"12\" fill=\"%s\"><title>%s</title></rect>",
        begin * kPartWidth, (end - begin) * kPartWidth, ColourOf(worker),
        worker == 0 ? "nobody" : absl::StrCat("worker ", worker));
  }
  const auto width = kPlacesParts * kPartWidth;
  return absl::StrCat("<svg width=\"", width, "\" height=\"12\">", parts, "</svg>");
}

std::string WorkersTable(const ClusterStatus& status) {
  std::string rows =
      Row({"worker", "name", "state", "backend", "address", "KV", "", "heartbeat"}, "th");
  for (const WorkerStatus& worker : status.workers) {
    const int64_t limit = std::max<int64_t>(1, worker.kv_bytes_limit);
    rows += Row({absl::StrFormat("<svg width=\"12\" height=\"12\"><rect width=\"12\" height=\"12\" "
                                 "fill=\"%s\"/></svg> %d",
                                 ColourOf(worker.id), worker.id),
                 Escaped(worker.name), Escaped(worker.state), Escaped(worker.backend),
                 Escaped(worker.data_address),
                 absl::StrCat(BytesText(worker.kv_bytes), " of ", BytesText(limit)),
                 absl::StrFormat("<meter value=\"%.4f\"></meter>",
                                 static_cast<double>(worker.kv_bytes) / static_cast<double>(limit)),
                 absl::StrFormat("%.1f s ago", worker.heartbeat_age_s)},
                "td");
  }
  return absl::StrCat("<table>\n", rows, "</table>\n");
}

std::string ContextsTable(const ClusterStatus& status, const ClusterView& view) {
  std::map<ContextId, std::string> maps;
  for (const ContextPlaces& places : view.places) maps[places.context] = MapBar(places);
  std::string rows = Row({"context", "state", "layers", "heads", "dtype", "tokens", "KV", "idle",
                          "lease", "owner", "who holds it"},
                         "th");
  const size_t shown = std::min(status.contexts.size(), kContextsShownMax);
  for (size_t i = 0; i < shown; ++i) {
    const ContextInfo& context = status.contexts[i];
    const ContextSpec& spec = context.spec;
    rows += Row({absl::StrCat(context.id), Escaped(context.state), absl::StrCat(spec.layers),
                 absl::StrCat(spec.heads, "/", spec.kv_heads, ", d ", spec.head_dim),
                 std::string(Name(spec.dtype)), absl::StrCat(TokensOf(context)),
                 BytesText(context.kv_bytes), absl::StrFormat("%.0f s", context.idle_s),
                 spec.lease == 0 ? "none" : absl::StrFormat("%.0f s", spec.lease),
                 Escaped(spec.owner), maps[context.id]},
                "td");
  }
  const int64_t more = ContextsOf(status) - static_cast<int64_t>(shown);
  const std::string left_out = more > 0 ? absl::StrCat("<p>", more, " more</p>\n") : "";
  return absl::StrCat("<table>\n", rows, "</table>\n", left_out);
}

}  // namespace

std::string StatusPage(const ClusterStatus& status, const ClusterView& view) {
  const std::string counts = absl::StrCat(
      "<p>epoch ", status.epoch, ", ", ContextsOf(status), " contexts, ", status.in_flight,
      " calls in flight (", BytesText(status.in_flight_bytes), "), ", status.contexts_expired,
      " contexts expired, ", status.contexts_evicted,
      " evicted</p>\n<p>workers: ", view.workers_joined, " joined, ", view.workers_left, " left, ",
      view.workers_lost, " lost; moves: ", view.moving ? 1 : 0, " running, ", view.moves_done,
      " done, ", view.moves_failed, " failed, ", BytesText(static_cast<int64_t>(view.moved_bytes)),
      "; recovery: ", view.contexts_recovering, " contexts wait, ",
      absl::StrFormat("%.1f s", absl::ToDoubleSeconds(view.recovery_time)), "</p>\n");
  return Page("Annulus", absl::StrCat(counts, WorkersTable(status), ContextsTable(status, view)));
}

std::string StatusPage(absl::string_view title,
                       const std::vector<std::pair<std::string, std::string>>& rows) {
  std::string table;
  for (const auto& [name, value] : rows) table += Row({Escaped(name), Escaped(value)}, "td");
  return Page(title, absl::StrCat("<table>\n", table, "</table>\n"));
}

}  // namespace annulus
