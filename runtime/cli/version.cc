// `annulus version`.
#include "attention/backend.h"
#include "base/status.h"
#include "runtime/cli/commands.h"
#include "runtime/cli/report/report.h"

namespace annulus {

absl::Status RunVersion(const Arguments& args, const Console& console) {
  bool json = false;
  Options options("version", "What this program is and what it uses on this machine.");
  options.AddFlag("json", "one JSON line on stdout", &json);
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help,
                           options.Parse(args, console.environment));
  if (help.has_value()) {
    *console.out << *help;
    return absl::OkStatus();
  }
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, MakeBackend("cpu", 1));
  VersionReport report;
  report.version = ANNULUS_VERSION;
  report.build_type = ANNULUS_BUILD_TYPE;
  report.simd = backend->capabilities().detail;
  report.transports = {"local", "ucx"};
  report.cuda = BuiltWithCuda();
  if (report.cuda) {
    const absl::StatusOr<std::unique_ptr<Backend>> cuda = MakeBackend("cuda", 1);
    report.gpu = cuda.ok() ? (*cuda)->capabilities().detail : std::string(cuda.status().message());
  }
  *console.out << (json ? ToJson(report) : ToText(report)) << std::flush;
  return absl::OkStatus();
}

}  // namespace annulus
