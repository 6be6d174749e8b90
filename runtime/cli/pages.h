// The pages that coordinator and worker offer at --http-listen (runtime/http).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/http/http_door.h"
#include "runtime/telemetry/metrics.h"

namespace annulus {

struct ProcessPages {
  // UNAVAILABLE says what is wrong. The process answers at all: for /livez.
  std::function<absl::Status()> live;
  // Others may use it now: for /readyz.
  std::function<absl::Status()> ready;
  HttpPage metrics;
  HttpPage status;       // for people, HTML
  HttpPage status_json;  // for scripts
};

// How long a page waits for what it asks of its process.
inline constexpr absl::Duration kPagePatience = absl::Seconds(1);

// What every process tells beside its own: of its pages' connections, process_* and
// annulus_build_info.
void AddProcessMetrics(const HttpCounts& pages, std::vector<Metric>* metrics);

HttpAnswer HtmlAnswer(std::string body);
HttpAnswer JsonAnswer(std::string body);

// /livez, /startupz (it listens), /readyz, /metrics, /status, /status.json and /. nullptr where
// `listen` is empty. Logs the port. `counts` outlives the door.
absl::StatusOr<std::unique_ptr<HttpDoor>> StartPages(const std::string& listen,
                                                     const ProcessPages& pages, HttpCounts* counts);

}  // namespace annulus
