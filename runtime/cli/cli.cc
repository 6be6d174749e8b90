#include "runtime/cli/cli.h"

#include <algorithm>
#include <exception>
#include <new>
#include <sstream>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/quoted.h"
#include "runtime/cli/options/variables.h"

namespace annulus {
namespace {

constexpr size_t kErrorBytesMax = 2000;

struct Command {
  const char* name;
  absl::Status (*run)(const Arguments&, const Console&);
  const char* help;
};

constexpr Command kCommands[] = {
    {"attend", RunAttend, "attention over tensors in files, here or in a service"},
    {"demo", RunDemo, "the main job: a million tokens over a local cluster, checked"},
    {"explain", RunExplain, "what a pattern costs and how it would be cut"},
    {"methods", RunMethods, "the pattern language, and attention methods by it"},
    {"quality", RunQuality, "what patterns keep of dense attention, and what they save"},
    {"up", RunUp, "a whole cluster on this machine, in the foreground"},
    {"status", RunStatus, "a cluster's workers and contexts"},
    {"contexts", RunContexts, "the contexts that a service holds"},
    {"release", RunRelease, "gives contexts of a service back"},
    {"coordinator", RunCoordinator, "a cluster's coordinator"},
    {"worker", RunWorker, "one of a cluster's workers"},
    {"version", RunVersion, "what this program is"},
};

std::string HelpText() {
  std::string text =
      "annulus: distributed long-context attention\n\n"
      "usage: annulus COMMAND [options]     (annulus COMMAND --help lists them)\n\n";
  for (const Command& command : kCommands) {
    absl::StrAppendFormat(&text, "  %-12s %s\n", command.name, command.help);
  }
  absl::StrAppend(&text,
                  "\nEvery option may also come from ANNULUS_<OPTION> or a --config file;"
                  " the flag wins, then the environment.\n");
  return text;
}

absl::Status Dispatch(const Arguments& args, const Console& console) {
  if (args.empty() || args[0] == "--help" || args[0] == "-h" || args[0] == "help") {
    *console.out << HelpText();
    return absl::OkStatus();
  }
  const std::string name = args[0] == "--version" ? "version" : args[0];
  std::string names;
  for (const Command& command : kCommands) {
    if (name == command.name) {
      return command.run(Arguments(args.begin() + 1, args.end()), console);
    }
    absl::StrAppend(&names, names.empty() ? "" : ", ", command.name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("command ", Quoted(args[0]), ": unknown; expected one of ", names));
}

// Messages may carry what others wrote; on the terminal an error stays one line of text.
std::string OneLine(absl::string_view message) {
  std::string line;
  for (const char c : message.substr(0, kErrorBytesMax)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      absl::StrAppend(&line, "\\x", absl::Hex(byte, absl::kZeroPad2));
    } else {
      line.push_back(c);
    }
  }
  return line;
}

// What a library throws becomes a status here, so that what a command holds is given back on the
// way.
absl::Status DispatchCaught(const Arguments& args, const Console& console) {
  try {
    return Dispatch(args, console);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("this machine has not the memory for it");
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

// Those that some command reads, as its help text says.
std::vector<std::string> KnownVariables() {
  std::ostringstream help;
  const Console console{[](const std::string&) { return nullptr; }, &help, &help};
  for (const Command& command : kCommands) command.run({"--help"}, console).IgnoreError();
  std::vector<std::string> known = VariablesIn(help.str());
  std::sort(known.begin(), known.end());
  return known;
}

// A variable that no command reads would be passed over without a word.
void WarnOfVariables(const Console& console) {
  for (const std::string& name : console.variables) {
    if (!absl::StartsWith(name, kVariablePrefix)) continue;
    const char* const value = console.environment(name);
    if (value == nullptr || *value == '\0') continue;
    static const std::vector<std::string> known = KnownVariables();
    if (std::binary_search(known.begin(), known.end(), name) || IsOfService(name)) continue;
    *console.err << "annulus: warning: " << OneLine(name)
                 << ": no option, and passed over; the nearest is " << NearestTo(name, known)
                 << std::endl;
  }
}

}  // namespace

int RunCli(const Arguments& args, const Console& console) {
  WarnOfVariables(console);
  absl::Status status = DispatchCaught(args, console);
  console.out->flush();
  if (status.ok() && !console.out->good()) {
    status =
        absl::UnavailableError("stdout: not all could be written; expected a place that takes it");
  }
  if (status.ok()) return 0;
  const bool is_users = absl::IsInvalidArgument(status);
  *console.err << "annulus: "
               << (is_users ? "" : absl::StrCat(absl::StatusCodeToString(status.code()), ": "))
               << OneLine(status.message()) << std::endl;
  return is_users ? 2 : 1;
}

}  // namespace annulus
