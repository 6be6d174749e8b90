#include "runtime/cli/pages.h"

#include <map>
#include <utility>

#include "attention/backend.h"
#include "base/log.h"
#include "base/status.h"
#include "runtime/cli/options/security_options.h"
#include "runtime/telemetry/process_metrics.h"

namespace annulus {

void AddProcessMetrics(const HttpCounts& pages, std::vector<Metric>* metrics) {
  metrics->push_back({"annulus_http_connections",
                      "Connections to the pages that are open.",
                      Metric::Kind::kGauge,
                      static_cast<double>(pages.open),
                      {}});
  metrics->push_back({"annulus_http_connections_refused_total",
                      "Connections to the pages that were closed at once.",
                      Metric::Kind::kCounter,
                      static_cast<double>(pages.refused),
                      {}});
  for (Metric& metric : ProcessMetrics()) metrics->push_back(std::move(metric));
  metrics->push_back({"annulus_build_info",
                      "1; its labels say which program this is.",
                      Metric::Kind::kGauge,
                      1,
                      {{"version", ANNULUS_VERSION}, {"cuda", BuiltWithCuda() ? "on" : "off"}}});
}

HttpAnswer HtmlAnswer(std::string body) {
  return {.type = "text/html; charset=utf-8", .body = std::move(body)};
}

HttpAnswer JsonAnswer(std::string body) {
  return {.type = "application/json", .body = std::move(body)};
}

absl::StatusOr<std::unique_ptr<HttpDoor>> StartPages(const std::string& listen,
                                                     const ProcessPages& pages,
                                                     HttpCounts* counts) {
  if (listen.empty()) return std::unique_ptr<HttpDoor>();
  std::map<std::string, HttpPage> by_path;
  by_path["/livez"] = [live = pages.live] { return ProbeAnswer(live()); };
  by_path["/readyz"] = [ready = pages.ready] { return ProbeAnswer(ready()); };
  by_path["/startupz"] = [] { return ProbeAnswer(absl::OkStatus()); };
  by_path["/metrics"] = pages.metrics;
  by_path["/status"] = by_path["/"] = pages.status;
  by_path["/status.json"] = pages.status_json;
  ANNULUS_ASSIGN_OR_RETURN(auto door, HttpDoor::Start(listen, std::move(by_path), counts));
  Log(LogLevel::kInfo, "http", {{"port", door->port()}});
  if (!IsLoopback(listen)) {
    Log(LogLevel::kWarning,
        "http: the pages ask nobody who they are; whoever reaches this address may read them",
        {{"listen", listen}});
  }
  return door;
}

}  // namespace annulus
