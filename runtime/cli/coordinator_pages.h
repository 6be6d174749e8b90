// The pages of a coordinator's process.
#pragma once

#include <atomic>

#include "runtime/cli/options/security_options.h"
#include "runtime/cli/pages.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/server/server.h"
#include "runtime/telemetry/metrics.h"
#include "runtime/telemetry/tenant_names.h"

namespace annulus {

// What a coordinator's process consists of; outlives its pages.
struct CoordinatorParts {
  ServerSecurityFlags security;
  const Door* door = nullptr;
  const Authenticator* authenticator = nullptr;  // null: nobody is asked who it is
  Coordinator* coordinator = nullptr;
  RpcServer* server = nullptr;  // null before it listens
  ConnectionCounts connections{};
  HttpCounts pages{};
  TenantNames tenants{};  // that wait
  std::atomic<bool> draining = false;
};

// What `service`'s metrics have beside those of its calls.
std::vector<Metric> MetricsOf(CoordinatorParts& parts);

// Probes ask the coordinator itself: they are no calls to be counted.
ProcessPages PagesOf(CoordinatorParts& parts, const MetricsService& service);

}  // namespace annulus
