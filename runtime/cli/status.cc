// `annulus status`: a cluster as its coordinator sees it, once or again and again.
#include <optional>

#include "base/status.h"
#include "runtime/cli/commands.h"
#include "runtime/cli/options/connect.h"
#include "runtime/cli/options/security_options.h"
#include "runtime/cli/options/shared_options.h"
#include "runtime/cli/process.h"
#include "runtime/cli/report/report.h"

namespace annulus {

namespace {

constexpr int kPeriodMaxS = 3600;
// Clears the terminal and begins at its top.
constexpr char kRedraw[] = "\033[H\033[2J";

struct StatusFlags {
  std::string endpoint;
  ClientSecurity security;
  std::optional<int> watch_s;
  bool json = false;
};

absl::Status Show(Client& client, const StatusFlags& flags, const Console& console) {
  ANNULUS_ASSIGN_OR_RETURN(const ClusterStatus status, client.Status());
  const bool redraws = flags.watch_s.has_value() && console.out_is_terminal && !flags.json;
  *console.out << (redraws ? kRedraw : "") << (flags.json ? ToJson(status) : ToText(status))
               << std::flush;
  return absl::OkStatus();
}

}  // namespace

absl::Status RunStatus(const Arguments& args, const Console& console) {
  StatusFlags flags;
  Options options("status", "A cluster: its epoch, contexts and workers.");
  options.AddRequired("endpoint", "HOST:PORT", "the service",
                      SetParsed(&flags.endpoint, ParseEndpoint));
  options.AddOptional("watch", "SECONDS", "again every so often, until interrupted (2)", "2",
                      SetCount(&flags.watch_s, 1, kPeriodMaxS));
  AddClientSecurity(&options, &flags.security);
  options.AddFlag("json", "one JSON line on stdout", &flags.json);
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help,
                           options.Parse(args, console.environment));
  if (help.has_value()) {
    *console.out << *help;
    return absl::OkStatus();
  }
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
