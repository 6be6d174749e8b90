// `annulus status`: a cluster as its coordinator sees it, once or again and again.
#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/cli/commands.h"
#include "runtime/cli/options/connect.h"
#include "runtime/cli/options/security_options.h"
#include "runtime/cli/options/shared_options.h"
#include "runtime/cli/process.h"
#include "runtime/cli/report/report.h"
#include "runtime/limits.h"

namespace annulus {

namespace {

constexpr int kPeriodMaxS = 3600;
constexpr absl::Duration kAwaitPoll = absl::Milliseconds(100);
// Clears the terminal and begins at its top.
constexpr char kRedraw[] = "\033[H\033[2J";

struct StatusFlags {
  std::string endpoint;
  ClientSecurity security;
  std::optional<int> watch_s;
  std::optional<int> ready_workers;
  int await_s = 60;
  bool json = false;
};

absl::Status Show(Client& client, const StatusFlags& flags, const Console& console) {
  ANNULUS_ASSIGN_OR_RETURN(const ClusterStatus status, client.Status());
  const bool redraws = flags.watch_s.has_value() && console.out_is_terminal && !flags.json;
  *console.out << (redraws ? kRedraw : "") << (flags.json ? ToJson(status) : ToText(status))
               << std::flush;
  return absl::OkStatus();
}

absl::StatusOr<int> ReadyWorkers(const StatusFlags& flags) {
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client,
                           ConnectTo(flags.endpoint, flags.security));
  ANNULUS_ASSIGN_OR_RETURN(const ClusterStatus status, client->Status());
  return std::count_if(status.workers.begin(), status.workers.end(),
                       [](const WorkerStatus& worker) { return worker.state == "ready"; });
}

// Asks until the wanted workers are ready. A coordinator that does not answer yet is waited for.
absl::Status AwaitWorkers(const StatusFlags& flags) {
  const absl::Time deadline = absl::Now() + absl::Seconds(flags.await_s);
  while (true) {
    const absl::StatusOr<int> ready = ReadyWorkers(flags);
    if (ready.ok() && *ready >= *flags.ready_workers) return absl::OkStatus();
    const bool may_come = ready.ok() || absl::IsUnavailable(ready.status()) ||
                          absl::IsDeadlineExceeded(ready.status());
    if (!may_come) return ready.status();
    if (absl::Now() >= deadline) {
      if (!ready.ok()) return ready.status();
      return absl::UnavailableError(absl::StrCat(flags.endpoint, ": ", *ready,
                                                 " workers are ready after ", flags.await_s,
                                                 " s; expected ", *flags.ready_workers));
    }
    absl::SleepFor(kAwaitPoll);
  }
}

}  // namespace

absl::Status RunStatus(const Arguments& args, const Console& console) {
  StatusFlags flags;
  Options options("status", "A cluster: its epoch, contexts and workers.");
  options.AddRequired("endpoint", "HOST:PORT", "the service",
                      SetParsed(&flags.endpoint, ParseEndpoint));
  options.AddOptional("watch", "SECONDS", "again every so often, until interrupted (2)", "2",
                      SetCount(&flags.watch_s, 1, kPeriodMaxS));
  options.Add("await-workers", "N", "first waits until so many workers are ready",
              SetCount(&flags.ready_workers, 1, kWorkersMax));
  options.Add("await-s", "SECONDS", "how long --await-workers waits at most (60)",
              SetCount(&flags.await_s, 0, kPeriodMaxS));
  AddClientSecurity(&options, &flags.security);
  options.AddFlag("json", "one JSON line on stdout", &flags.json);
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help,
                           options.Parse(args, console.environment));
  if (help.has_value()) {
    *console.out << *help;
    return absl::OkStatus();
  }
  if (flags.ready_workers.has_value()) ANNULUS_RETURN_IF_ERROR(AwaitWorkers(flags));
  std::optional<Signals> signals;  // before the client's threads
  if (flags.watch_s.has_value()) signals.emplace();
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client,
                           ConnectTo(flags.endpoint, flags.security));
  ANNULUS_RETURN_IF_ERROR(Show(*client, flags, console));
  // Whoever runs the command says that stdout takes no more.
  while (signals.has_value() && console.out->good() &&
         !signals->WaitForStop(absl::Seconds(*flags.watch_s))) {
    const absl::Status shown = Show(*client, flags, console);
    // A coordinator that is followed by another one is worth waiting for.
    if (!absl::IsUnavailable(shown) && !absl::IsDeadlineExceeded(shown)) {
      ANNULUS_RETURN_IF_ERROR(shown);
    } else {
      *console.err << shown.message() << std::endl;
    }
  }
  return absl::OkStatus();
}

}  // namespace annulus
