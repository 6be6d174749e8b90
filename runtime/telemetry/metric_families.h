// What a process counts and what a service says of itself, in Prometheus' terms. Pure functions.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "annulus/types.h"
#include "runtime/telemetry/metrics.h"

namespace prometheus {
struct MetricFamily;
}  // namespace prometheus

namespace annulus {

std::vector<prometheus::MetricFamily> FamiliesOf(absl::Span<const Metric> metrics);
// Of a status that failed only that it did.
std::vector<prometheus::MetricFamily> FamiliesOf(const absl::StatusOr<ClusterStatus>& status);

}  // namespace annulus
