// `annulus worker`: a worker's process.
#include "runtime/worker/worker.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/heap_trimmer.h"
#include "base/memory.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/cli/options/connect.h"
#include "runtime/cli/options/security_options.h"
#include "runtime/cli/options/service_options.h"
#include "runtime/cli/options/shared_options.h"
#include "runtime/cli/process.h"
#include "runtime/cli/worker_pages.h"
#include "runtime/identity/auth_file.h"
#include "runtime/server/data_server.h"
#include "runtime/server/join.h"
#include "runtime/telemetry/trace_file.h"
#include "runtime/worker/grants.h"

namespace annulus {
namespace {

// How often the process looks up from waiting, for a signal or a loss.
constexpr absl::Duration kLookUp = absl::Milliseconds(100);
// How long one that is to end waits to hear that it is a member, which it leaves then.
constexpr absl::Duration kWelcome = absl::Seconds(1);
// How often people are told that a worker waits, at the longest.
constexpr absl::Duration kWordPeriod = absl::Seconds(10);
constexpr int kPlacesMax = 1 << 16;
// How often a worker that the coordinator does not hear yet asks again for its key, which would go.
constexpr absl::Duration kLookPeriod = absl::Seconds(10);

struct WorkerFlags {
  ServiceFlags service;
  ServerSecurityFlags security;  // of the data port
  ClientSecurity join;           // towards the coordinator; certificate and key are the data port's
  bool plain_data = false;
  std::string coordinator;
  std::string name;
  ComputeFlags compute;
  int place = 0;
  int rejoin_s = 300;
  int drain_s = 25;
  std::string data_listen;
  int64_t upload_bytes_max = int64_t{256} << 20;
};

Options OptionsOf(WorkerFlags* flags) {
  Options options("worker", "Holds KV and computes where it lies.");
  options.AddRequired("coordinator", "HOST:PORT", "where the coordinator listens",
                      SetParsed(&flags->coordinator, ParseEndpoint));
  options.Add("name", "TEXT", "what people call it in logs and errors",
              [flags](absl::string_view text) -> absl::Status {
                flags->name = std::string(text);
                if (text.size() <= kNameBytesMax) return absl::OkStatus();
                return absl::InvalidArgumentError(
                    absl::StrCat(text.size(), " bytes; expected at most ", kNameBytesMax));
              });
  options.Add("rejoin-s", "N", "without its coordinator keep the KV and look for it for N s (300)",
              SetCount(&flags->rejoin_s, 0, kSecondsMax));
  options.Add("drain-s", "N",
              "after SIGTERM wait up to N s for what is held to be moved to other workers (25)",
              SetCount(&flags->drain_s, 0, kSecondsMax));
  options.Add("data-listen", "HOST:PORT",
              "where clients upload KV (towards the coordinator, any port)",
              SetParsed(&flags->data_listen, ParseEndpoint));
  options.Add("upload-bytes-max", "N",
              "bytes of uploads under way at once, half of them one client's (256M)",
              SetCount(&flags->upload_bytes_max, 1, int64_t{1} << 50));
  options.Add("place", "N", "the how many-th worker of this machine this is: GPUs go in turn (0)",
              SetCount(&flags->place, 0, kPlacesMax));
  AddComputeOptions(&options, &flags->compute);
  AddServiceOptions(&options, &flags->service);
  AddServerSecurity(&options, &flags->security);
  AddJoinSecurity(&options, &flags->join);
  options.AddFlag("plain-data", "uploads come in plain text: the network protects them",
                  &flags->plain_data);
  return options;
}

bool IsNotYet(const absl::Status& status) {
  return absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status);
}

// The coordinator's address on the workers' network and the key to it, once it is there to tell;
// no address when a signal says to stop.
absl::StatusOr<Admittance> FindCoordinator(const std::string& endpoint, JoinClient& join,
                                           const std::string& data_address, Signals& signals) {
  const absl::Time begin = absl::Now();
  for (absl::Time next_word = begin;;) {
    absl::StatusOr<Admittance> in = join.Join(data_address, absl::Now() + kLookUp);
    if (!IsNotYet(in.status())) return in;
    if (const absl::Time now = absl::Now(); now >= next_word) {
      const absl::Duration waited = now - begin;
      const absl::Status probed = ProbeService(endpoint);
      next_word = now + std::clamp(waited, absl::Seconds(1), kWordPeriod);
      Log(LogLevel::kInfo, "waiting for the coordinator",
          {{"endpoint", endpoint},
           {"for", absl::FormatDuration(absl::Trunc(waited, absl::Seconds(1)))},
           {"why", probed.ok() ? in.status().message() : probed.message()}});
    }
    if (signals.WaitForStop(kLookUp)) return Admittance();
  }
}

// A coordinator that was started anew listens at another address of the workers' network. A token
// that it does not accept may be on its way here anew: the KV waits for it.
absl::Status LookForCoordinator(JoinClient& join, const std::string& data_address, Worker& worker,
                                absl::Time* next_word) {
  const absl::StatusOr<Admittance> in = join.Join(data_address, absl::Now() + kLookUp);
  if (in.ok()) worker.SetCoordinatorAddress(in->address, in->key);
  if (const absl::Time now = absl::Now(); !in.ok() && now >= *next_word) {
    *next_word = now + kWordPeriod;
    Log(LogLevel::kWarning, "waiting for the coordinator", {{"why", in.status().ToString()}});
  }
  const bool waits = IsNotYet(in.status()) || absl::IsUnauthenticated(in.status());
  return waits ? absl::OkStatus() : in.status();
}

// What the worker shows to the coordinator.
ClientSecurity JoinSecurityOf(const WorkerFlags& flags) {
  ClientSecurity join = flags.join;
  if (join.tls.on()) {
    join.tls.cert = flags.security.tls_cert;
    join.tls.key = flags.security.tls_key;
    join.tls.reload_period = absl::Seconds(flags.security.reload_s);
  }
  return join;
}

absl::StatusOr<std::unique_ptr<DataServer>> StartData(const WorkerFlags& flags, GrantTable* grants,
                                                      Door* door, ConnectionCounts* connections) {
  DataServerOptions data;
  data.counts = connections;
  data.client = ClientLimitsOf(flags.service);
  data.connections = ConnectionLimitsOf(flags.service);
  data.grants = grants;
  data.listen = flags.data_listen;
  if (data.listen.empty()) {
    ANNULUS_ASSIGN_OR_RETURN(const std::string host, LocalHostTowards(flags.coordinator));
    data.listen = absl::StrCat(host, ":0");
  }
  if (!flags.plain_data) data.tls = TlsOf(flags.security);
  const bool open = !data.tls.on() && !flags.plain_data;
  ANNULUS_RETURN_IF_ERROR(CheckExposed(
      "--data-listen", data.listen,
      open ? "TLS (--tls-cert, --tls-key), or --plain-data where the network protects uploads" : "",
      flags.security.insecure));
  if (door->asks()) data.door = door;
  return DataServer::Start(data);
}

// INVALID_ARGUMENT unless strangers are kept out, or it was said that they need not be.
absl::Status CheckSecurity(const WorkerFlags& flags) {
  if (flags.plain_data && !flags.security.auth.empty()) {
    return absl::InvalidArgumentError(
        "--auth: with --plain-data; expected one of them, since tokens are not told in plain text");
  }
  return CheckExposed("--coordinator", flags.coordinator,
                      flags.join.tls.on() ? "" : "TLS (--tls-ca)", flags.security.insecure);
}

// When a worker that a signal asks to leave ends at the latest, and the log's word where it waits.
absl::Time LeaveBy(const WorkerFlags& flags, const WorkerSnapshot& worker) {
  const absl::Time now = absl::Now();
  if (worker.state == LinkState::kReady) return now + absl::Seconds(flags.drain_s);
  // The coordinator may count on one that has not heard yet that it is a member.
  if (worker.state == LinkState::kJoining) return now + kWelcome;
  if (worker.state != LinkState::kRejoining || worker.contexts == 0 || flags.drain_s == 0) {
    return now;
  }
  // A node that is drained may have had the coordinator too, which comes back elsewhere.
  Log(LogLevel::kWarning, "asked to leave; waits for its coordinator, to have its KV moved",
      {{"contexts", worker.contexts},
       {"kv_bytes", worker.kv_bytes},
       {"for", absl::FormatDuration(absl::Seconds(flags.drain_s))}});
  return now + absl::Seconds(flags.drain_s);
}

// Keeps the worker a member until a signal asks it to leave and it has left. UNAVAILABLE if it is
// lost.
absl::Status Stay(const WorkerFlags& flags, const std::string& data_address, JoinClient& join,
                  Worker& worker, Signals& signals) {
  // The first signal asks to leave; the next one, or drain_s, ends the process at once.
  std::optional<absl::Time> leave_by;
  absl::Time next_look = absl::Now() + kLookPeriod;
  absl::Time next_word = absl::InfinitePast();
  while (!worker.left() && (!leave_by.has_value() || absl::Now() < *leave_by)) {
    if (signals.WaitForStop(kLookUp)) {
      if (leave_by.has_value()) break;
      leave_by = LeaveBy(flags, worker.Snapshot());
      worker.Leave();
    }
    const WorkerSnapshot now = worker.Snapshot();
    const bool gone = now.state == LinkState::kRejoining;  // the coordinator
    if (gone && leave_by.has_value() && now.contexts == 0) break;
    if (gone || (now.state == LinkState::kJoining && absl::Now() >= next_look)) {
      ANNULUS_RETURN_IF_ERROR(LookForCoordinator(join, data_address, worker, &next_word));
      next_look = absl::Now() + kLookPeriod;
    }
    if (!worker.lost()) continue;
    return absl::UnavailableError(
        absl::StrCat("the coordinator at ", Quoted(flags.coordinator), " is gone, or gave up on ",
                     "this worker, or its GPU failed; what it held is lost: start it again"));
  }
  return absl::OkStatus();
}

absl::Status Serve(const WorkerFlags& flags, Signals& signals) {
  ANNULUS_RETURN_IF_ERROR(CheckServiceOptions(flags.service));
  ANNULUS_RETURN_IF_ERROR(CheckSecurity(flags));
  // Uploads bring a grant's secret; whoever brings no token need not be known.
  ANNULUS_ASSIGN_OR_RETURN(
      const std::unique_ptr<Authenticator> authenticator,
      OpenAuthenticator(flags.security, /*audit=*/nullptr, Authenticator::Certificates::kAsked));
  WarnIfInsecure(flags.security);
  Door door(authenticator.get());
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<TraceFile> trace_file,
                           TraceFile::Open(flags.service.trace_out, "annulus-worker", flags.name));
  WorkerOptions options;
  options.spans = TraceFile::SinkOf(trace_file.get());
  GrantTable grants(flags.upload_bytes_max);
  WorkerParts parts;
  parts.name = flags.name;
  std::unique_ptr<DataServer> data;
  std::unique_ptr<Worker> worker;
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<JoinClient> join,
                           JoinClient::Make(flags.coordinator, JoinSecurityOf(flags)));
  const auto security_metrics = [&](std::vector<Metric>* metrics) {
    const DataServer* const serves = parts.data.load();
    AddSecurityMetrics(flags.security, door, authenticator.get(), metrics);
    AddTlsMetrics("data", "tls", serves == nullptr ? TlsFiles::Reading() : serves->tls(), metrics);
    AddTlsMetrics("join", "join", join->tls(), metrics);
  };
  ANNULUS_ASSIGN_OR_RETURN(
      const std::unique_ptr<HttpDoor> pages,
      StartPages(flags.service.http_listen, PagesOf(parts, security_metrics), &parts.pages));
  // Until it is there nobody may know which of this machine's addresses is towards it.
  ANNULUS_ASSIGN_OR_RETURN(Admittance in, FindCoordinator(flags.coordinator, *join, "", signals));
  if (in.address.empty()) return absl::OkStatus();
  UcxOptions ucx = UcxOptionsOf(flags.service);
  // The coordinator bounds what it has asked for. An answer that found no room could not be told
  // from one that never comes, and would cost the worker its place.
  ucx.queue_bytes_max = std::numeric_limits<size_t>::max();
  ANNULUS_ASSIGN_OR_RETURN(options.fabric, UcxFabric::Create(ucx));
  ANNULUS_ASSIGN_OR_RETURN(data, StartData(flags, &grants, &door, &parts.connections));
  parts.data = data.get();
  options.data_address = data->address();
  ANNULUS_ASSIGN_OR_RETURN(in, FindCoordinator(flags.coordinator, *join, data->address(), signals));
  if (in.address.empty()) return absl::OkStatus();
  options.coordinator_address = in.address;
  options.coordinator_key = in.key;
  options.grants = &grants;
  options.coordinator_name = flags.coordinator;
  options.name = flags.name;
  ANNULUS_ASSIGN_OR_RETURN(options.backend,
                           MakeBackend(flags.compute.backend, flags.compute.threads, flags.place));
  options.kv_in_host_memory = flags.compute.kv_in_host_memory();
  options.kv_bytes_limit = KvBytesLimit(flags.compute, options.backend->capabilities(), 1);
  KeepFreedMemory(KeptBytes(options.kv_bytes_limit));
  const HeapTrimmer trimmer;
  options.rejoin_timeout = absl::Seconds(flags.rejoin_s);
  options.heartbeat_period = absl::Milliseconds(flags.service.heartbeat_ms);
  options.heartbeat_timeout = absl::Milliseconds(flags.service.heartbeat_timeout_ms);
  ANNULUS_ASSIGN_OR_RETURN(worker, Worker::Start(std::move(options)));
  parts.worker = worker.get();
  ANNULUS_RETURN_IF_ERROR(Stay(flags, data->address(), *join, *worker, signals));
  const WorkerSnapshot last = worker->Snapshot();
  if (last.contexts > 0) {
    Log(LogLevel::kWarning, "ends with KV that was not moved",
        {{"contexts", last.contexts}, {"kv_bytes", last.kv_bytes}});
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunWorker(const Arguments& args, const Console& console) {
  WorkerFlags flags;
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help,
                           OptionsOf(&flags).Parse(args, console.environment));
  if (help.has_value()) {
    *console.out << *help;
    return absl::OkStatus();
  }
  // One that takes uploads from elsewhere has peers elsewhere.
  if (flags.data_listen.empty() || IsLoopback(flags.data_listen)) {
    KeepToLoopback(flags.coordinator, &flags.service);
  }
  SetLogLevel(flags.service.log_level);
  KeepFreedMemory();  // before there are threads that have heaps of their own
  Signals signals;
  return Serve(flags, signals);
}

}  // namespace annulus
