// The commands in README.md are run as they stand there.
#include <filesystem>
#include <memory>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "tests/catch.h"
#include "tests/cli/program.h"

namespace annulus {
namespace {

constexpr char kProgram[] = "build/release/annulus ";
constexpr char kEndpoint[] = "127.0.0.1:7070";

// How long the README's long context is here: instrumented programs take many times as long.
constexpr char kLong[] = "--tokens 10M";
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr char kLongHere[] = "--tokens 1M";
#else
constexpr char kLongHere[] = "--tokens 10M";
#endif

// The commands of the README's ```sh blocks, one a line.
std::vector<std::string> Commands() {
  std::istringstream lines(absl::StrReplaceAll(test::ReadBytes(ANNULUS_README), {{" \\\n", " "}}));
  std::vector<std::string> commands;
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("```", 0) == 0) {
      inside = line == "```sh";
    } else if (inside) {
      commands.push_back(line);
    }
  }
  return commands;
}

// As a shell would, for what the README uses: blanks and single quotes.
Arguments Words(absl::string_view command) {
  Arguments words = {""};
  bool quoted = false;
  for (const char c : command) {
    if (c == '\'') {
      quoted = !quoted;
    } else if (c != ' ' || quoted) {
      words.back().push_back(c);
    } else if (!words.back().empty()) {
      words.emplace_back();
    }
  }
  return words;
}

}  // namespace

TEST_CASE("readme: every command does what it is there for") {
  const test::TempFolder folder;
  const auto home = std::filesystem::current_path();
  std::filesystem::current_path(folder / "");
  Rng rng(12);
  for (const auto& [name, shape] : {std::pair("q.npy", std::vector<int64_t>{100, 8, 32}),
                                    {"k.npy", {700, 4, 32}},
                                    {"v.npy", {700, 4, 32}}}) {
    test::WriteBytes(name, test::TestTensor::Random(rng, DType::kF32, shape).Npy());
  }

  std::unique_ptr<test::Program> up;
  std::string endpoint = kEndpoint;
  int runs = 0;
  for (const std::string& command : Commands()) {
    INFO(command);
    REQUIRE(command.rfind(kProgram, 0) == 0);
    // The port that the README names may be taken here: any free one does.
    const bool starts = absl::StrContains(command, " up ");
    const Arguments words = Words(
        absl::StrReplaceAll(command.substr(sizeof(kProgram) - 1),
                            {{kEndpoint, starts ? "127.0.0.1:0" : endpoint}, {kLong, kLongHere}}));
    if (starts) {
      up = std::make_unique<test::Program>(words);
      endpoint = std::string(absl::StripPrefix(up->ReadLine(), "ready "));
      continue;
    }
    const test::Outcome outcome = test::RunHere(words);
    INFO(outcome.err);
    CHECK(outcome.code == 0);
    ++runs;
  }
  CHECK(runs >= 5);
  CHECK(up != nullptr);
  CHECK(std::filesystem::exists("out.npy"));
  CHECK(std::filesystem::exists("block-map.svg"));
  std::filesystem::current_path(home);
}

}  // namespace annulus
