// What the system says of this process, by the names that Prometheus' clients give it. Thread-safe.
#pragma once

#include <vector>

#include "runtime/telemetry/metrics.h"

namespace annulus {

//   process_cpu_seconds_total, process_start_time_seconds   (since the Unix epoch)
//   process_resident_memory_bytes, process_virtual_memory_bytes
//   process_open_fds, process_max_fds
//   process_threads
// What the system does not say is left out.
std::vector<Metric> ProcessMetrics();

}  // namespace annulus
