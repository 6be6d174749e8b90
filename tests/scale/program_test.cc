// The program annulus_scale: what it refuses, it refuses in one line and before any heading.
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>

#include "tests/catch.h"
#include "tests/temp_folder.h"

namespace annulus {
namespace {

struct Outcome {
  int code = 0;
  std::string text;  // stdout and stderr
};

// `options` are words of a shell.
Outcome Run(const test::TempFolder& folder, const std::string& options) {
  const std::string cluster = folder.Write("cluster.json", R"({"flops": 5e10})");
  const auto program =
      std::filesystem::read_symlink("/proc/self/exe").parent_path() / "annulus_scale";
  const std::string command =
      "'" + program.string() + "' --cluster '" + cluster + "' " + options + " 2>&1";
  std::FILE* const pipe = popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  Outcome outcome;
  char buffer[4096];
  for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) {
    outcome.text.append(buffer, n);
  }
  const int status = pclose(pipe);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return outcome;
}

}  // namespace

TEST_CASE("annulus_scale refuses in one line, before any heading") {
  const test::TempFolder folder;
  struct Case {
    const char* options;
    const char* says;
  };
  const Case cases[] = {
      {"--plan ring", "--plan: \"ring\"; expected only with --pattern"},
      {"--pattern causal --scenarios ring", "--pattern and --scenarios: both given"},
      {"--pattern causal --tokens-per-rank 1K", "--pattern and --tokens-per-rank: both given"},
      {"--ranks 2 --heads 7", "heads: 7; expected"},
      {"--ranks 2 --pattern 'causal & windo(3)'", "windo"},
  };
  for (const Case& c : cases) {
    const Outcome outcome = Run(folder, c.options);
    INFO(c.options << ": " << outcome.text);
    CHECK(outcome.code == 2);
    CHECK(outcome.text.starts_with("annulus_scale: "));
    CHECK(outcome.text.find(c.says) != std::string::npos);
    CHECK(std::count(outcome.text.begin(), outcome.text.end(), '\n') == 1);
  }
}

TEST_CASE("annulus_scale has one heading for each series") {
  const test::TempFolder folder;
  const Outcome outcome = Run(folder, "--pattern causal --plan ring,mesh --ranks 2,4 --tokens 4K");
  INFO(outcome.text);
  CHECK(outcome.code == 0);
  CHECK(outcome.text.starts_with("ring: plan ring, causal, strong scaling, 4096 tokens in all\n"));
  CHECK(std::count(outcome.text.begin(), outcome.text.end(), '\n') == 8);
}

}  // namespace annulus
