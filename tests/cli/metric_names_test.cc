// What coordinator and worker tell to Prometheus is what the table of docs/pages/operations.md
// says: dashboards and alerts are written by it.
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "annulus/client.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/cli/program.h"
#include "tests/cli/question.h"
#include "tests/rpc/scrape.h"
#include "tests/temp_folder.h"

namespace annulus {
namespace {

using test::Program;
using test::Question;
using Names = std::map<std::string, std::set<std::string>>;  // metrics, and their labels

// What stands between backticks.
std::vector<std::string> Quoted(absl::string_view cell) {
  std::vector<std::string> quoted;
  const std::vector<std::string> parts = absl::StrSplit(cell, '`');
  for (size_t i = 1; i < parts.size(); i += 2) quoted.push_back(parts[i]);
  return quoted;
}

Names Documented() {
  Names names;
  std::istringstream lines(test::ReadBytes(ANNULUS_OPERATIONS));
  for (std::string line; std::getline(lines, line);) {
    if (!absl::StartsWith(line, "| `")) continue;
    const std::vector<std::string> cells = absl::StrSplit(line, '|');
    const std::vector<std::string> labels = Quoted(cells.at(2));
    for (const std::string& name : Quoted(cells.at(1))) {
      names[name] = {labels.begin(), labels.end()};
    }
  }
  return names;
}

// Of a page; checks what Prometheus asks of names on the way.
Names Told(const std::string& page) {
  Names names;
  std::set<std::string> helped;
  std::string name;
  std::istringstream lines(page);
  for (std::string line; std::getline(lines, line);) {
    const std::vector<std::string> words = absl::StrSplit(line, absl::MaxSplits(' ', 3));
    CAPTURE(line);
    if (absl::StartsWith(line, "# HELP ")) {
      helped.insert(words.at(2));
    } else if (absl::StartsWith(line, "# TYPE ")) {
      name = words.at(2);
      CHECK(helped.count(name) == 1);
      CHECK((words.at(3) == "counter") == absl::EndsWith(name, "_total"));
      CHECK(names.emplace(name, std::set<std::string>()).second);  // told in one piece
    } else if (absl::StartsWith(line, name) && !name.empty()) {
      const size_t open = line.find('{');
      if (open == std::string::npos) continue;
      const std::string labels = line.substr(open + 1, line.rfind('}') - open - 1);
      for (absl::string_view label : absl::StrSplit(labels, "\",")) {
        const std::string key(label.substr(0, label.find('=')));
        if (key != "le") names[name].insert(key);
      }
    }
  }
  return names;
}

void CheckWithPromtool(const std::string& page) {
  if (std::system("command -v promtool >/dev/null") != 0) {
    WARN("skipped: promtool is not installed");
    return;
  }
  const test::TempFolder folder;
  const std::string file = folder.Write("metrics", page);
  CHECK(std::system(absl::StrCat("promtool check metrics <", file, " >&2").c_str()) == 0);
}

std::string PageOf(const Program& program) {
  const std::string answer = test::Scrape(program.HttpPort());
  return answer.substr(answer.find("\r\n\r\n") + 4);
}

TEST_CASE("every metric stands in the table of the operations page, with its labels") {
  Program coordinator({"coordinator", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"});
  const std::string endpoint = coordinator.ReadLine().substr(6);
  Program worker({"worker", "--coordinator", endpoint, "--threads", "1", "--http-listen",
                  "127.0.0.1:0", "--kv-bytes-limit", "64M"});
  const auto client = Client::Connect({.endpoint = endpoint});
  REQUIRE(client.ok());
  Rng rng(5);
  const Question question(rng);
  const absl::StatusOr<ContextId> context = question.UploadWhenReady(**client);
  REQUIRE(context.ok());
  REQUIRE((*client)->Attend(question.Ask(*context)).ok());

  const Names documented = Documented();
  REQUIRE(documented.size() > 60);
  Names told;
  for (const Program* program : {&coordinator, &worker}) {
    const std::string page = PageOf(*program);
    CheckWithPromtool(page);
    for (const auto& [name, labels] : Told(page)) {
      told[name].insert(labels.begin(), labels.end());
    }
  }
  for (const auto& [name, labels] : told) {
    CAPTURE(name);
    REQUIRE(documented.count(name) == 1);
    CHECK(documented.at(name) == labels);
  }
  for (const auto& [name, labels] : documented) {
    // What there is with tenants, with TLS and on a GPU alone.
    if (absl::StrContains(name, "_tenant_") || absl::StrContains(name, "_tls_") ||
        absl::StrContains(name, "_gpu_")) {
      continue;
    }
    CAPTURE(name);
    CHECK(told.count(name) == 1);
  }
}

}  // namespace
}  // namespace annulus
