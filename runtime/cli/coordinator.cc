// `annulus coordinator`: the coordinator's process.
#include "runtime/coordinator/coordinator.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/heap_trimmer.h"
#include "base/memory.h"
#include "base/status.h"
#include "runtime/cli/coordinator_pages.h"
#include "runtime/cli/files/cluster_file.h"
#include "runtime/cli/options/security_options.h"
#include "runtime/cli/options/service_options.h"
#include "runtime/cli/options/shared_options.h"
#include "runtime/cli/process.h"
#include "runtime/identity/audit_log.h"
#include "runtime/server/door.h"
#include "runtime/server/server.h"
#include "runtime/telemetry/audit_service.h"
#include "runtime/telemetry/metrics.h"
#include "runtime/telemetry/trace_file.h"
#include "runtime/telemetry/trace_service.h"

namespace annulus {
namespace {

constexpr absl::Duration kShutdownGrace = absl::Seconds(2);

struct CoordinatorFlags {
  ServiceFlags service;
  ServerSecurityFlags security;
  std::string listen = "127.0.0.1:7070";
  std::optional<std::string> cluster;
  std::vector<std::string> data_hosts;
  std::string audit_log;  // empty: the process's log, where --auth asks who calls
  int recovery_s = 10;
  LimitFlags limits;
  bool reflection = false;
  bool json = false;
};

Options OptionsOf(CoordinatorFlags* flags) {
  Options options("coordinator", "Places contexts, plans and merges; clients talk to it.");
  options.Add("listen", "HOST:PORT", "where clients and workers find it (127.0.0.1:7070)",
              SetParsed(&flags->listen, ParseEndpoint));
  options.Add("cluster", "F", "the machines that plans are weighed for, a JSON file (this one)",
              SetText(&flags->cluster));
  options.Add("recovery-s", "N",
              "contexts from before a restart wait N s for all of their workers (10)",
              SetCount(&flags->recovery_s, 1, kSecondsMax));
  options.Add("data-hosts", "LIST",
              "hosts that workers may name for uploads beside the one that they join from, as "
              "10.1.*,*.pool.svc (none)",
              [flags](absl::string_view text) -> absl::Status {
                flags->data_hosts = absl::StrSplit(text, ',', absl::SkipEmpty());
                return absl::OkStatus();
              });
  AddLimits(&options, &flags->limits);
  AddServiceOptions(&options, &flags->service);
  AddServerSecurity(&options, &flags->security);
  options.Add("audit-log", "F",
              "add to this file who made, forked, truncated or released which context, who joined "
              "and who was denied (with --auth: the log on stderr)",
              SetText(&flags->audit_log));
  options.AddFlag("reflection",
                  "tell callers which services there are (for development; not where --auth or "
                  "--tls-client-ca asks who calls)",
                  &flags->reflection);
  options.AddFlag("json", "say {endpoint} instead of ready HOST:PORT", &flags->json);
  return options;
}

std::string EndpointOf(const std::string& listen, int port) {
  return absl::StrCat(listen.substr(0, listen.rfind(':')), ":", port);
}

// INVALID_ARGUMENT unless options fit together, and strangers are kept out or it was said that they
// need not be.
absl::Status CheckFlags(const CoordinatorFlags& flags) {
  ANNULUS_RETURN_IF_ERROR(CheckServiceOptions(flags.service));
  const ServerSecurityFlags& security = flags.security;
  std::string missing;
  if (security.tls_cert.empty()) missing = "TLS (--tls-cert, --tls-key)";
  if (security.auth.empty() && security.tls_client_ca.empty()) {
    absl::StrAppend(&missing, missing.empty() ? "" : " and ",
                    "to be told who may call (--auth or --tls-client-ca)");
  }
  if (flags.reflection && (!security.auth.empty() || !security.tls_client_ca.empty())) {
    return absl::InvalidArgumentError(
        "--reflection: given where callers must say who they are; expected it without --auth and "
        "--tls-client-ca");
  }
  return CheckExposed("--listen", flags.listen, missing, security.insecure);
}

absl::StatusOr<std::unique_ptr<Authenticator>> OpenAuth(const ServerSecurityFlags& flags,
                                                        AuditLog* audit) {
  using Certificates = Authenticator::Certificates;
  return OpenAuthenticator(
      flags, audit, flags.tls_client_ca.empty() ? Certificates::kNotAsked : Certificates::kAsked);
}

absl::Status Serve(const CoordinatorFlags& flags, const Console& console, Signals& signals) {
  ANNULUS_RETURN_IF_ERROR(CheckFlags(flags));
  std::unique_ptr<AuditLog> audit;
  if (!flags.audit_log.empty() || !flags.security.auth.empty()) {
    ANNULUS_ASSIGN_OR_RETURN(audit, AuditLog::Open(flags.audit_log));
  }
  ANNULUS_ASSIGN_OR_RETURN(const auto authenticator, OpenAuth(flags.security, audit.get()));
  WarnIfInsecure(flags.security);
  Door door(authenticator.get(), audit.get());
  CoordinatorOptions options;
  if (flags.cluster.has_value()) {
    ANNULUS_ASSIGN_OR_RETURN(const ClusterFile cluster, FindCluster(*flags.cluster));
    options.cluster = cluster.model;
    options.cluster_shared = cluster.shared;
  }
  options.workers_need_keys = true;
  options.recovery_wait = absl::Seconds(flags.recovery_s);
  options.limits = flags.limits.coordinator;
  options.heartbeat_period = absl::Milliseconds(flags.service.heartbeat_ms);
  options.heartbeat_timeout = absl::Milliseconds(flags.service.heartbeat_timeout_ms);
  UcxOptions ucx = UcxOptionsOf(flags.service);
  // A worker may be sent all that calls in flight bring.
  ucx.queue_bytes_max = std::max(ucx.queue_bytes_max,
                                 static_cast<size_t>(flags.limits.coordinator.in_flight_bytes_max));
  ANNULUS_ASSIGN_OR_RETURN(options.fabric, UcxFabric::Create(ucx));
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Coordinator> coordinator,
                           Coordinator::Start(std::move(options)));
  CoordinatorParts parts{.security = flags.security,
                         .door = &door,
                         .authenticator = authenticator.get(),
                         .coordinator = coordinator.get()};
  AuditService audited(coordinator.get(), audit.get());
  Service* const calls = audit == nullptr ? static_cast<Service*>(coordinator.get()) : &audited;
  ANNULUS_ASSIGN_OR_RETURN(
      const std::unique_ptr<TraceFile> trace_file,
      TraceFile::Open(flags.service.trace_out, "annulus-coordinator", flags.listen));
  MetricsService service(calls, [&parts] { return MetricsOf(parts); });
  RpcServerOptions rpc;
  rpc.listen = flags.listen;
  TraceService traced(&service, TraceFile::SinkOf(trace_file.get()));
  rpc.service = trace_file == nullptr ? static_cast<Service*>(&service) : &traced;
  rpc.join = JoinOptions{[&](const std::string& before, const std::string& data_address) {
                           return Admittance{
                               coordinator->fabric_address(),
                               coordinator->admitted().Admit(before, data_address, absl::Now())};
                         },
                         flags.data_hosts};
  rpc.tls = TlsOf(flags.security);
  rpc.door = &door;
  rpc.reflection = flags.reflection;
  rpc.counts = &parts.connections;
  rpc.limits = RpcLimitsOf(flags.limits, flags.service);
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<RpcServer> server, RpcServer::Start(rpc));
  parts.server = server.get();
  ANNULUS_ASSIGN_OR_RETURN(
      const std::unique_ptr<HttpDoor> pages,
      StartPages(flags.service.http_listen, PagesOf(parts, service), &parts.pages));
  const std::string endpoint = EndpointOf(flags.listen, server->port());
  *console.out << (flags.json ? absl::StrCat("{\"endpoint\":\"", endpoint, "\"}")
                              : absl::StrCat("ready ", endpoint))
               << std::endl;
  while (!signals.WaitForStop(absl::InfiniteDuration())) {
  }
  Log(LogLevel::kInfo, "coordinator stops");
  parts.draining = true;
  server->Shutdown(kShutdownGrace);
  return absl::OkStatus();
}

}  // namespace

absl::Status RunCoordinator(const Arguments& args, const Console& console) {
  CoordinatorFlags flags;
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help,
                           OptionsOf(&flags).Parse(args, console.environment));
  if (help.has_value()) {
    *console.out << *help;
    return absl::OkStatus();
  }
  KeepToLoopback(flags.listen, &flags.service);
  SetLogLevel(flags.service.log_level);
  KeepFreedMemory();
  Signals signals;
  const HeapTrimmer trimmer;
  return Serve(flags, console, signals);
}

}  // namespace annulus
