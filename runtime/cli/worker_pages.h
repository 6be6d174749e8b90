// The pages of a worker's process, from before it has found its coordinator on.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "runtime/cli/pages.h"
#include "runtime/server/data_server.h"
#include "runtime/telemetry/metrics.h"
#include "runtime/worker/worker.h"

namespace annulus {

// What a worker's process consists of by now; outlives its pages.
struct WorkerParts {
  std::string name;
  std::atomic<DataServer*> data = nullptr;
  std::atomic<Worker*> worker = nullptr;
  ConnectionCounts connections;
  HttpCounts pages;
};

// `more` adds to the metrics.
ProcessPages PagesOf(WorkerParts& parts, std::function<void(std::vector<Metric>*)> more);

}  // namespace annulus
