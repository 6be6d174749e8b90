// `annulus status`: a cluster as its coordinator sees it.
#include "base/status.h"
#include "runtime/cli/commands.h"
#include "runtime/cli/report.h"
#include "runtime/cli/shared_options.h"

namespace annulus {

absl::Status RunStatus(const Arguments& args, const Console& console) {
  std::string endpoint;
  bool json = false;
  Options options("status", "A cluster: its epoch, contexts and workers.");
  options.AddRequired("endpoint", "HOST:PORT", "the service", SetParsed(&endpoint, ParseEndpoint));
  options.AddFlag("json", "one JSON line on stdout", &json);
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help,
                           options.Parse(args, console.environment));
  if (help.has_value()) {
    *console.out << *help;
    return absl::OkStatus();
  }
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, ConnectTo(endpoint));
  ANNULUS_ASSIGN_OR_RETURN(const ClusterStatus status, client->Status());
  if (json) {
    *console.out << ToJson(status) << std::flush;
  } else {
    *console.err << ToText(status) << std::flush;
  }
  return absl::OkStatus();
}

}  // namespace annulus
