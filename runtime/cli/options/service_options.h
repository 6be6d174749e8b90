// Options that the processes of a service share. Thread-safe functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/log.h"
#include "comm/ucx/ucx_fabric.h"
#include "runtime/cli/commands.h"
#include "runtime/cli/options/options.h"
#include "runtime/coordinator/limits.h"
#include "runtime/server/acceptor.h"
#include "runtime/server/limits.h"
#include "runtime/server/stall_watch.h"
#include "runtime/telemetry/metrics.h"

namespace annulus {

inline constexpr int kSecondsMax = 86'400;  // that an option may name

struct ServiceFlags {
  std::string transports = "tcp";
  std::string net_devices;
  std::string tcp_port_range;
  int heartbeat_ms = 100;
  int heartbeat_timeout_ms = 1000;
  // Of clients, at both kinds of doors that they reach.
  int client_stall_max_s = 10;
  int64_t client_rate_min = ClientLimits().client_rate_min;
  int connections_max = ConnectionLimits().connections_max;
  std::string http_listen;  // empty: no pages
  std::string trace_out;    // file; empty: no spans are told
  LogLevel log_level = LogLevel::kInfo;
  std::string log_level_text = "info";
};

void AddServiceOptions(Options* options, ServiceFlags* flags);
// INVALID_ARGUMENT names the option that does not fit another.
absl::Status CheckServiceOptions(const ServiceFlags& flags);
ClientLimits ClientLimitsOf(const ServiceFlags& flags);
ConnectionLimits ConnectionLimitsOf(const ServiceFlags& flags);

// annulus_transport_bytes_total.
Metric TransportBytes(const char* transport, const char* direction, uint64_t bytes);

// annulus_calls_refused_total.
Metric CallsRefused(absl::string_view reason, uint64_t count);

// annulus_queue_wait_seconds; of "calls" or "tasks".
Metric QueueWait(const char* queue, Histogram::Reading waits);

// annulus_connections, how many were turned away, and how many never spoke TLS as they should.
std::vector<Metric> MetricsOf(const ConnectionCounts& counts);

// The flags that give another command the same options, but for http_listen, which two processes
// cannot share.
Arguments ServiceArguments(const ServiceFlags& flags);

// What a coordinator's process holds at most.
struct LimitFlags {
  CoordinatorLimits coordinator;
  int64_t buffer_bytes_max = RpcLimits().buffer_bytes_max;  // of its server
};
void AddLimits(Options* options, LimitFlags* flags);
// The flags that give another command the same limits.
Arguments LimitArguments(const LimitFlags& flags);
// What its server holds at most. One call may bring as much as the coordinator takes of one.
RpcLimits RpcLimitsOf(const LimitFlags& limits, const ServiceFlags& service);

// Where the coordinator's port is for this machine alone, so are those of UCX, unless devices are
// named. `endpoint`: where it listens, or where a worker finds it.
void KeepToLoopback(const std::string& endpoint, ServiceFlags* flags);
UcxOptions UcxOptionsOf(const ServiceFlags& flags);

// The address of this machine from which it reaches `endpoint`, "host" or "[host]". UNAVAILABLE
// names an endpoint that cannot be reached from here at all.
absl::StatusOr<std::string> LocalHostTowards(const std::string& endpoint);

// This machine's memory, or what the control group leaves of it.
int64_t MemoryBytes();

}  // namespace annulus
