// `annulus methods`, and what the documentation repeats of it.
#include <cctype>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "tests/catch.h"
#include "tests/cli/program.h"
#include "tests/temp_folder.h"

namespace annulus {
namespace {

using nlohmann::json;

std::vector<json> Lines() {
  const test::Outcome outcome = test::RunHere({"methods", "--json"});
  REQUIRE(outcome.code == 0);
  std::vector<json> lines;
  for (const auto line : absl::StrSplit(outcome.out, '\n', absl::SkipEmpty())) {
    lines.push_back(json::parse(line.begin(), line.end()));
  }
  return lines;
}

std::string InTable(const json& text) {
  return absl::StrReplaceAll(text.get<std::string>(), {{"|", "\\|"}});
}

TEST_CASE("methods are told to people and to scripts alike") {
  const test::Outcome text = test::RunHere({"methods"});
  REQUIRE(text.code == 0);
  const std::vector<json> lines = Lines();
  CHECK(lines.size() >= 45);
  for (const json& line : lines) {
    CAPTURE(line.dump());
    CHECK(absl::StrContains(text.out, line["form"].get<std::string>()));
    CHECK(absl::StrContains(text.out, line["meaning"].get<std::string>()));
  }
}

TEST_CASE("the documentation's tables and pictures of patterns are those of the program") {
  const std::string pages = absl::StrCat(ANNULUS_SOURCES, "/docs/pages");
  const std::string page = test::ReadBytes(pages + "/patterns.md");
  const std::string readme = absl::StrReplaceAll(
      test::ReadBytes(absl::StrCat(ANNULUS_SOURCES, "/README.md")), {{"\n", " "}});
  const test::TempFolder folder;
  REQUIRE(test::RunHere({"methods", "--pictures", folder / ""}).code == 0);
  for (const json& line : Lines()) {
    CAPTURE(line.dump());
    const std::string name = line["name"];
    CHECK(absl::StrContains(
        page, absl::StrCat("`", InTable(line["form"]), "` | ", InTable(line["meaning"]))));
    if (line["kind"] == "method") {
      CHECK(absl::StrContains(readme, name));
      continue;
    }
    if (line["example"] == "") continue;
    const std::string picture = absl::StrCat("/word-", name, ".svg");
    CHECK(test::ReadBytes(pages + "/img/patterns" + picture) == test::ReadBytes(folder / picture));
  }
}

TEST_CASE("methods refuse a folder for pictures that is not there") {
  CHECK(test::IsRefusal(test::RunHere({"methods", "--pictures", "/nonexistent"})));
}

}  // namespace
}  // namespace annulus
