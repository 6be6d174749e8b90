// `annulus up`: a whole cluster of processes of this program on this machine, in the foreground. A
// worker that ends without being told to is started again; without its coordinator the cluster
// ends.
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "attention/backend.h"
#include "base/status.h"
#include "runtime/cli/machines.h"
#include "runtime/cli/options/connect.h"
#include "runtime/cli/options/security_options.h"
#include "runtime/cli/options/service_options.h"
#include "runtime/cli/options/shared_options.h"
#include "runtime/cli/process.h"
#include "runtime/cli/report/report.h"
#include "runtime/limits.h"
#include "runtime/telemetry/trace_file.h"

namespace annulus {
namespace {

constexpr absl::Duration kStartTimeout = absl::Minutes(1);
constexpr absl::Duration kStopTimeout = absl::Seconds(10);
// They share the cores: so much longer for each of them.
constexpr absl::Duration kStartTimeoutOfWorker = absl::Seconds(2);
constexpr absl::Duration kStopTimeoutOfWorker = absl::Milliseconds(200);
constexpr absl::Duration kLookUp = absl::Milliseconds(20);
constexpr absl::Duration kWaitsForNobody = absl::Milliseconds(500);
// How often in a row a worker is started again, the pause before the first time, which doubles, and
// how long it must have run to count as well again.
constexpr int kRestartsMax = 5;
constexpr absl::Duration kRestartPause = absl::Seconds(1);
constexpr absl::Duration kWellAfter = absl::Minutes(1);

struct UpFlags {
  ServiceFlags service;
  int workers = 4;
  std::string listen = "127.0.0.1:0";
  MachineFlags machines;
  ComputeFlags compute;
  LimitFlags limits;
  bool insecure = false;
  bool json = false;
};

Options OptionsOf(UpFlags* flags) {
  Options options("up", "A cluster on this machine, until SIGINT, SIGTERM or SIGHUP.");
  options.Add("workers", "N", "workers (4)", SetCount(&flags->workers, 1, kWorkersHereMax));
  options.Add("listen", "HOST:PORT", "where clients find it (127.0.0.1, any port)",
              SetParsed(&flags->listen, ParseEndpoint));
  AddMachines(&options, &flags->machines);
  AddComputeOptions(&options, &flags->compute);
  AddLimits(&options, &flags->limits);
  AddServiceOptions(&options, &flags->service);
  options.AddFlag("insecure", "let --listen name more than this machine, open to everybody",
                  &flags->insecure);
  options.AddFlag("json", "say {endpoint, coordinator_pid, worker_pids} instead of ready HOST:PORT",
                  &flags->json);
  return options;
}

// Whether there is such a backend here, before any process starts.
absl::StatusOr<BackendCapabilities> Probe(const std::string& name) {
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, MakeBackend(name, 1));
  return backend->capabilities();
}

// What each process would refuse for itself, before any starts.
absl::Status CheckShared(const ServiceFlags& flags) {
  ANNULUS_RETURN_IF_ERROR(CheckServiceOptions(flags));
  ANNULUS_RETURN_IF_ERROR(TraceFile::Open(flags.trace_out, "annulus-up", "").status());
  return UcxFabric::Create(UcxOptionsOf(flags)).status();
}

// The processes of the cluster.
class Cluster {
  struct WorkerProcess {
    std::string name;
    Arguments args;
    std::unique_ptr<Child> child;
    absl::Time started;
    absl::Time start_at = absl::InfiniteFuture();  // the next one, in place of one that ended
    int restarts = 0;                              // in a row

    absl::Status Start() {
      ANNULUS_ASSIGN_OR_RETURN(child, Child::Start(args));
      started = absl::Now();
      start_at = absl::InfiniteFuture();
      return absl::OkStatus();
    }

    // One that was told to end, and did so in good order, is not missed.
    absl::Status LookAfter() {
      if (const std::string how = child->Reap(); !how.empty()) {
        Log(LogLevel::kWarning, "worker process ended",
            {{"worker", name}, {"pid", child->pid()}, {"how", how}});
        if (how == Child::kEndedWell) return absl::OkStatus();
        if (absl::Now() - started >= kWellAfter) restarts = 0;
        if (restarts == kRestartsMax) {
          return absl::UnavailableError(absl::StrCat("worker ", name, " ended ", restarts + 1,
                                                     " times in a row, now with ", how));
        }
        start_at = absl::Now() + kRestartPause * (1 << restarts++);
      }
      if (absl::Now() < start_at) return absl::OkStatus();
      ANNULUS_RETURN_IF_ERROR(Start());
      Log(LogLevel::kWarning, "worker process started again, without its KV",
          {{"worker", name}, {"pid", child->pid()}});
      return absl::OkStatus();
    }
  };

 public:
  ~Cluster() { Stop(); }

  // `cluster_file`: what plans are weighed with; may be empty.
  absl::Status StartCoordinator(const UpFlags& flags, const std::string& cluster_file) {
    Arguments args = {"coordinator", "--listen", flags.listen};
    if (flags.insecure) args.push_back("--insecure");
    if (!cluster_file.empty()) args.insert(args.end(), {"--cluster", cluster_file});
    if (!flags.service.http_listen.empty()) {
      args.insert(args.end(), {"--http-listen", flags.service.http_listen});
    }
    const Arguments shared = ServiceArguments(flags.service);
    args.insert(args.end(), shared.begin(), shared.end());
    const Arguments limits = LimitArguments(flags.limits);
    args.insert(args.end(), limits.begin(), limits.end());
    ANNULUS_ASSIGN_OR_RETURN(coordinator_, Child::Start(args));
    absl::StatusOr<std::string> line = coordinator_->ReadLine(absl::Now() + kStartTimeout);
    constexpr absl::string_view kReady = "ready ";
    if (!line.ok() || !absl::StartsWith(*line, kReady)) {
      return absl::UnavailableError(
          absl::StrCat("the coordinator did not start: ", line.status().message()));
    }
    endpoint_ = line->substr(kReady.size());
    return absl::OkStatus();
  }

  absl::Status StartWorkers(const UpFlags& flags, const BackendCapabilities& backend) {
    const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    const int threads =
        flags.compute.threads != 0 ? flags.compute.threads : std::max(1, cores / flags.workers);
    for (int i = 0; i < flags.workers; ++i) {
      Arguments args = {"worker",
                        "--coordinator",
                        endpoint_,
                        "--name",
                        absl::StrCat("w", i + 1),
                        "--backend",
                        flags.compute.backend,
                        "--threads",
                        absl::StrCat(threads),
                        "--place",
                        absl::StrCat(i),
                        "--kv-memory",
                        flags.compute.kv_memory,
                        "--kv-bytes-limit",
                        absl::StrCat(KvBytesLimit(flags.compute, backend, flags.workers))};
      if (flags.insecure) args.push_back("--insecure");
      const Arguments shared = ServiceArguments(flags.service);
      args.insert(args.end(), shared.begin(), shared.end());
      WorkerProcess& worker = workers_.emplace_back();
      worker.name = absl::StrCat("w", i + 1);
      worker.args = std::move(args);
      ANNULUS_RETURN_IF_ERROR(worker.Start());
    }
    return absl::OkStatus();
  }

  // Returns once all workers have joined, or a signal says to stop (then true).
  absl::StatusOr<bool> WaitUntilJoined(Signals& signals) {
    ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, ConnectTo(endpoint_, {}));
    const absl::Duration patience =
        kStartTimeout + static_cast<int>(workers_.size()) * kStartTimeoutOfWorker;
    const absl::Time deadline = absl::Now() + patience;
    size_t ready = 0;
    while (ready < workers_.size()) {
      if (signals.WaitForStop(kLookUp)) return true;
      ANNULUS_RETURN_IF_ERROR(ReapCoordinator());
      for (WorkerProcess& worker : workers_) {
        if (const std::string how = worker.child->Reap(); !how.empty()) {
          return absl::UnavailableError(absl::StrCat("worker ", worker.name, " ended with ", how,
                                                     " before all workers had joined"));
        }
      }
      ANNULUS_ASSIGN_OR_RETURN(const ClusterStatus status, client->Status());
      ready = std::count_if(
          status.workers.begin(), status.workers.end(),
          [](const WorkerStatus& worker) { return worker.state == Name(WorkerState::kReady); });
      if (ready < workers_.size() && absl::Now() > deadline) {
        return absl::DeadlineExceededError(absl::StrCat(ready, " of ", workers_.size(),
                                                        " workers joined within ",
                                                        absl::FormatDuration(patience)));
      }
    }
    return false;
  }

  UpReport report() const {
    UpReport report{endpoint_, coordinator_->pid(), {}};
    for (const WorkerProcess& worker : workers_) report.worker_pids.push_back(worker.child->pid());
    return report;
  }

  // Looks after the processes until a signal says to stop. UNAVAILABLE once the coordinator has
  // ended, or a worker too often.
  absl::Status Watch(Signals& signals) {
    absl::Time next = absl::InfiniteFuture();  // start of a worker
    while (!signals.WaitForStop(next - absl::Now())) {
      ANNULUS_RETURN_IF_ERROR(ReapCoordinator());
      next = absl::InfiniteFuture();
      for (WorkerProcess& worker : workers_) {
        ANNULUS_RETURN_IF_ERROR(worker.LookAfter());
        next = std::min(next, worker.start_at);
      }
    }
    return absl::OkStatus();
  }

  // Ends all processes and waits for them; by force those that take too long.
  void Stop() {
    for (const WorkerProcess& worker : workers_) worker.child->Terminate();
    if (coordinator_ != nullptr) coordinator_->Terminate();
    const absl::Time deadline =
        absl::Now() + kStopTimeout + static_cast<int>(workers_.size()) * kStopTimeoutOfWorker;
    absl::Time again = absl::Now() + kWaitsForNobody;
    while (AnyRuns() && absl::Now() < deadline) {
      absl::SleepFor(kLookUp);
      for (const WorkerProcess& worker : workers_) {
        worker.child->Reap();
        // One that holds contexts waits for a coordinator, until it is told once more.
        if (absl::Now() >= again) worker.child->Terminate();
      }
      if (absl::Now() >= again) again = absl::InfiniteFuture();
      if (coordinator_ != nullptr) coordinator_->Reap();
    }
    workers_.clear();
    coordinator_.reset();
  }

 private:
  bool AnyRuns() const {
    return (coordinator_ != nullptr && coordinator_->running()) ||
           std::any_of(workers_.begin(), workers_.end(),
                       [](const WorkerProcess& worker) { return worker.child->running(); });
  }

  absl::Status ReapCoordinator() {
    const std::string how = coordinator_->Reap();
    if (how.empty()) return absl::OkStatus();
    return absl::UnavailableError(
        absl::StrCat("the coordinator ended with ", how, ": the cluster ends"));
  }

  std::unique_ptr<Child> coordinator_;
  std::vector<WorkerProcess> workers_;
  std::string endpoint_;
};

}  // namespace

absl::Status RunUp(const Arguments& args, const Console& console) {
  UpFlags flags;
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help,
                           OptionsOf(&flags).Parse(args, console.environment));
  if (help.has_value()) {
    *console.out << *help;
    return absl::OkStatus();
  }
  ANNULUS_RETURN_IF_ERROR(
      CheckExposed("--listen", flags.listen,
                   "a coordinator and workers of their own, with TLS and --auth", flags.insecure));
  KeepToLoopback(flags.listen, &flags.service);
  SetLogLevel(flags.service.log_level);
  Signals signals;
  ANNULUS_RETURN_IF_ERROR(CheckShared(flags.service));
  ANNULUS_ASSIGN_OR_RETURN(const BackendCapabilities backend, Probe(flags.compute.backend));
  ANNULUS_ASSIGN_OR_RETURN(const Machines machines,
                           MachinesFor(flags.machines, flags.compute.backend, flags.workers,
                                       console.environment, *console.err));
  Cluster cluster;
  ANNULUS_RETURN_IF_ERROR(cluster.StartCoordinator(flags, machines.file));
  ANNULUS_RETURN_IF_ERROR(cluster.StartWorkers(flags, backend));
  ANNULUS_ASSIGN_OR_RETURN(const bool stop, cluster.WaitUntilJoined(signals));
  if (stop) return absl::OkStatus();
  const UpReport report = cluster.report();
  *console.out << (flags.json ? ToJson(report) : absl::StrCat("ready ", report.endpoint, "\n"))
               << std::flush;
  return cluster.Watch(signals);
}

}  // namespace annulus
