// Metrics: what a process counts, offered to Prometheus as the page /metrics. Names are annulus_*
// in base units (bytes, seconds); labels come from fixed sets, and at most 64 tenants are told by
// name (all others are "other"), so the number of series is bounded.
// Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/histogram.h"
#include "runtime/http/http_door.h"
#include "runtime/service/service.h"

namespace annulus {

// One value, or histogram, that a process tells beside what a Service does.
struct Metric {
  enum class Kind { kGauge, kCounter, kHistogram };
  std::string name;  // "annulus_kv_bytes"; counters end in _total
  std::string help;
  Kind kind = Kind::kGauge;
  double value = 0;
  std::vector<std::pair<std::string, std::string>> labels;
  Histogram::Reading histogram = {};  // in place of a value
};
using MetricsSnapshot = std::function<std::vector<Metric>()>;  // called at each scrape

// A Service that counts the calls of another:
//   annulus_requests_total{call,code}            an upload counts once per piece
//   annulus_request_seconds{call,code}           histogram
//   annulus_requests_in_flight{call}
//   annulus_tenant_requests_total{tenant,code}   where callers have tenants
//   annulus_attend_moved_bytes_total{plan}       payload counted at the transports
//   annulus_attend_planned_bytes_total{plan}     what the plans said
//   annulus_transport_bytes_total{transport="grpc",direction}   tensors of calls, as they were sent
// and at each scrape asks it for its Status:
//   annulus_kv_bytes, annulus_kv_bytes_limit     sums over the ready workers
//   annulus_kv_dense_bytes                       what contexts would hold if nothing was evicted
//   annulus_contexts{state}                      "ok", "moving", "degraded", "recovering", "lost"
//   annulus_workers{state}                       "ready", "draining", "left", "lost"
//   annulus_epoch
//   annulus_blocks{state}                        over layers and KV heads, by their context's state
//   annulus_contexts_expired_total, annulus_contexts_evicted_total   that ended by themselves
//   annulus_calls_in_flight, annulus_call_bytes_in_flight
//   annulus_heartbeat_age_seconds{worker}        of workers that are not lost
//   annulus_tenant_contexts{tenant}, annulus_tenant_kv_bytes{tenant},
//   annulus_tenant_calls_in_flight{tenant}, annulus_tenant_call_bytes_in_flight{tenant}
//   annulus_status_up                            0 when Status failed: then the others are absent
class MetricsService final : public Service {
 public:
  // `inner` outlives this. `more`, if any, is told beside.
  explicit MetricsService(Service* inner, MetricsSnapshot more = {});
  ~MetricsService() override;

  // Those that are refused count as calls.
  absl::StatusOr<CallSize> Check(const AppendRequest& header, const CallContext& call) override;
  absl::StatusOr<CallSize> Check(const AttendRequest& header, const CallContext& call) override;

 private:
  friend HttpAnswer MetricsPage(const MetricsService& service);
  absl::StatusOr<AnyAnswer> Answer(const AnyRequest& request, const CallContext& call) override;

  struct State;
  std::shared_ptr<State> state_;
};

// The page /metrics, in Prometheus' text format.
HttpAnswer MetricsPage(const MetricsService& service);
HttpAnswer MetricsPage(const std::vector<Metric>& metrics);

}  // namespace annulus
