// `annulus up`: a whole cluster of processes of this program on this machine, in the foreground.
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "attention/backend.h"
#include "base/status.h"
#include "runtime/cli/connect.h"
#include "runtime/cli/machines.h"
#include "runtime/cli/process.h"
#include "runtime/cli/report.h"
#include "runtime/cli/service_options.h"
#include "runtime/cli/shared_options.h"

namespace annulus {
namespace {

constexpr int kWorkersUpMax = 256;
constexpr absl::Duration kStartTimeout = absl::Minutes(1);
constexpr absl::Duration kStopTimeout = absl::Seconds(10);
constexpr absl::Duration kLookUp = absl::Milliseconds(20);

struct UpFlags {
  ServiceFlags service;
  int workers = 4;
  std::string listen = "127.0.0.1:0";
  MachineFlags machines;
  ComputeFlags compute;
  bool json = false;
};

Options OptionsOf(UpFlags* flags) {
  Options options("up", "A cluster on this machine, until SIGINT or SIGTERM.");
  options.Add("workers", "N", "workers (4)", SetCount(&flags->workers, 1, kWorkersUpMax));
  options.Add("listen", "HOST:PORT", "where clients find it (127.0.0.1, any port)",
              SetParsed(&flags->listen, ParseEndpoint));
  AddMachines(&options, &flags->machines);
  AddComputeOptions(&options, &flags->compute);
  AddServiceOptions(&options, &flags->service);
  options.AddFlag("json", "say {endpoint, coordinator_pid, worker_pids} instead of ready HOST:PORT",
                  &flags->json);
  return options;
}

// Whether there is such a backend here, before any process starts.
absl::StatusOr<BackendCapabilities> Probe(const std::string& name) {
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, MakeBackend(name, 1));
  return backend->capabilities();
}

// The processes of the cluster.
class Cluster {
 public:
  ~Cluster() { Stop(); }

  // `cluster_file`: what plans are weighed with; may be empty.
  absl::Status StartCoordinator(const UpFlags& flags, const std::string& cluster_file) {
    Arguments args = {"coordinator", "--listen", flags.listen};
    if (!cluster_file.empty()) args.insert(args.end(), {"--cluster", cluster_file});
    if (!flags.service.metrics_listen.empty()) {
      args.insert(args.end(), {"--metrics-listen", flags.service.metrics_listen});
    }
    const Arguments shared = ServiceArguments(flags.service);
    args.insert(args.end(), shared.begin(), shared.end());
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
      const Arguments shared = ServiceArguments(flags.service);
      args.insert(args.end(), shared.begin(), shared.end());
      ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<Child> worker, Child::Start(args));
      workers_.push_back(std::move(worker));
    }
    return absl::OkStatus();
  }

  // Returns once all workers have joined, or a signal says to stop (then true).
  absl::StatusOr<bool> WaitUntilJoined(Signals& signals) {
    ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, ConnectTo(endpoint_));
    const absl::Time deadline = absl::Now() + kStartTimeout;
    size_t ready = 0;
    while (ready < workers_.size()) {
      if (signals.WaitForStop(kLookUp)) return true;
      if (const std::string ended = ReapAll(); !ended.empty()) {
        return absl::UnavailableError(absl::StrCat(ended, " before all workers had joined"));
      }
      ANNULUS_ASSIGN_OR_RETURN(const ClusterStatus status, client->Status());
      ready = std::count_if(status.workers.begin(), status.workers.end(),
                            [](const WorkerStatus& worker) { return worker.state == "ready"; });
      if (ready < workers_.size() && absl::Now() > deadline) {
        return absl::DeadlineExceededError(absl::StrCat(ready, " of ", workers_.size(),
                                                        " workers joined within ",
                                                        absl::FormatDuration(kStartTimeout)));
      }
    }
    return false;
  }

  UpReport report() const {
    UpReport report{endpoint_, coordinator_->pid(), {}};
    for (const auto& worker : workers_) report.worker_pids.push_back(worker->pid());
    return report;
  }

  // Looks after the processes until a signal says to stop. A worker that ends is told and missed;
  // without its coordinator there is no cluster.
  absl::Status Watch(Signals& signals) {
    while (!signals.WaitForStop(absl::InfiniteDuration())) {
      ReapAll();
      if (!coordinator_->running()) return absl::UnavailableError("the coordinator ended");
    }
    return absl::OkStatus();
  }

  // Ends all processes and waits for them; by force those that take too long.
  void Stop() {
    for (const auto& worker : workers_) worker->Terminate();
    if (coordinator_ != nullptr) coordinator_->Terminate();
    const absl::Time deadline = absl::Now() + kStopTimeout;
    while (AnyRuns() && absl::Now() < deadline) {
      absl::SleepFor(kLookUp);
      for (const auto& worker : workers_) worker->Reap();
      if (coordinator_ != nullptr) coordinator_->Reap();
    }
    workers_.clear();
    coordinator_.reset();
  }

 private:
  bool AnyRuns() const {
    return (coordinator_ != nullptr && coordinator_->running()) ||
           std::any_of(workers_.begin(), workers_.end(),
                       [](const auto& worker) { return worker->running(); });
  }

  // Logs whoever ended; returns the words for the last of them.
  std::string ReapAll() {
    std::string ended;
    for (const auto& worker : workers_) {
      if (const std::string how = worker->Reap(); !how.empty()) {
        ended = absl::StrCat("a worker ended with ", how);
        Log(LogLevel::kWarning, "worker process ended", {{"pid", worker->pid()}, {"how", how}});
      }
    }
    if (const std::string how = coordinator_->Reap(); !how.empty()) {
      ended = absl::StrCat("the coordinator ended with ", how);
      Log(LogLevel::kError, "coordinator process ended", {{"how", how}});
    }
    return ended;
  }

  std::unique_ptr<Child> coordinator_;
  std::vector<std::unique_ptr<Child>> workers_;
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
  SetLogLevel(flags.service.log_level);
  Signals signals;
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
