// `annulus contexts` and `annulus release`: what a service holds, and giving it back.
#include <algorithm>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "runtime/cli/commands.h"
#include "runtime/cli/options/connect.h"
#include "runtime/cli/options/security_options.h"
#include "runtime/cli/options/shared_options.h"
#include "runtime/cli/report/report.h"

namespace annulus {
namespace {

absl::StatusOr<std::vector<ContextInfo>> ListAll(Client& client) {
  std::vector<ContextInfo> all;
  ListRequest request;
  while (true) {
    ANNULUS_ASSIGN_OR_RETURN(const std::vector<ContextInfo> some, client.List(request));
    if (some.empty()) return all;
    all.insert(all.end(), some.begin(), some.end());
    request.after = some.back().id;
  }
}

absl::StatusOr<std::vector<ContextId>> ParseIds(absl::string_view text) {
  std::vector<ContextId> ids;
  for (const absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    ContextId id = 0;
    if (!absl::SimpleAtoi(word, &id) || id == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          Quoted(word), "; expected a context's number, as `annulus contexts` has it"));
    }
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  return ids;
}

}  // namespace

absl::Status RunContexts(const Arguments& args, const Console& console) {
  std::string endpoint;
  ClientSecurity security;
  bool json = false;
  Options options("contexts", "The contexts that a service holds.");
  options.AddRequired("endpoint", "HOST:PORT", "the service", SetParsed(&endpoint, ParseEndpoint));
  AddClientSecurity(&options, &security);
  options.AddFlag("json", "one JSON line for each on stdout", &json);
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help,
                           options.Parse(args, console.environment));
  if (help.has_value()) {
    *console.out << *help;
    return absl::OkStatus();
  }
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, ConnectTo(endpoint, security));
  ANNULUS_ASSIGN_OR_RETURN(const std::vector<ContextInfo> contexts, ListAll(*client));
  if (!json) {
    *console.out << ToText(contexts) << std::flush;
    return absl::OkStatus();
  }
  for (const ContextInfo& context : contexts) *console.out << ToJson(context);
  return absl::OkStatus();
}

absl::Status RunRelease(const Arguments& args, const Console& console) {
  std::string endpoint;
  ClientSecurity security;
  std::vector<ContextId> ids;
  bool all = false;
  Options options("release", "Gives contexts of a service back: their KV is gone.");
  options.AddRequired("endpoint", "HOST:PORT", "the service", SetParsed(&endpoint, ParseEndpoint));
  options.AddWords("id", "ID…", "contexts, as `annulus contexts` lists them",
                   SetParsed(&ids, ParseIds));
  options.AddFlag("all", "every context that the service holds", &all);
  options.Exclude("id", "all");
  AddClientSecurity(&options, &security);
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help,
                           options.Parse(args, console.environment));
  if (help.has_value()) {
    *console.out << *help;
    return absl::OkStatus();
  }
  if (ids.empty() && !all) {
    return absl::InvalidArgumentError("ID: none; expected contexts' numbers or --all");
  }
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, ConnectTo(endpoint, security));
  if (all) {
    ANNULUS_ASSIGN_OR_RETURN(const std::vector<ContextInfo> contexts, ListAll(*client));
    for (const ContextInfo& context : contexts) ids.push_back(context.id);
  }
  std::vector<ContextId> unknown;
  for (const ContextId id : ids) {
    const absl::Status released = client->Release(id);
    if (absl::IsNotFound(released)) {
      unknown.push_back(id);
      continue;
    }
    ANNULUS_RETURN_IF_ERROR(released);
    *console.out << "released " << id << std::endl;
  }
  // Somebody else may have released one of all.
  if (unknown.empty() || all) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("context ", absl::StrJoin(unknown, ", "), ": none in ",
                                          endpoint, "; expected those of `annulus contexts`"));
}

}  // namespace annulus
