// Options: three sources, one order, and refusals that say where the value came from.
#include "runtime/cli/options/options.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "runtime/cli/files/cluster_file.h"
#include "runtime/cli/options/config_file.h"
#include "runtime/cli/options/shared_options.h"
#include "tests/catch.h"
#include "tests/cli/program.h"

namespace annulus {
namespace {

struct Values {
  int64_t count = 1;
  std::string text = "default";
  bool json = false;
};

// What the three options of a made-up command become, or the refusal.
absl::StatusOr<Values> ParseTest(const Arguments& args, const test::Variables& variables = {}) {
  Values values;
  Options options("explain", "A test.");
  options.Add("some-count", "N", "a count", SetCount(&values.count, 1, 1 << 20));
  options.Add("text", "T", "a text", SetText(&values.text));
  options.AddFlag("json", "a flag", &values.json);
  options.Exclude("some-count", "text");
  const auto help = options.Parse(args, [&](const std::string& name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
  if (!help.ok()) return help.status();
  return values;
}

std::string Refusal(const absl::StatusOr<Values>& values) {
  REQUIRE(absl::IsInvalidArgument(values.status()));
  return std::string(values.status().message());
}

void CheckSays(const std::string& message, absl::string_view part) {
  INFO(message << " should say " << std::string(part));
  CHECK(absl::StrContains(message, part));
}

TEST_CASE("options: the flag wins, then the environment, then the file") {
  const test::TempFolder folder;
  const std::string path = folder / "a.conf";
  test::WriteBytes(path, "# a comment\nsome-count = 5\njson = true\n[attend]\nsome-count = 6\n");
  const test::Variables environment = {{"ANNULUS_SOME_COUNT", "4K"}};
  CHECK(ParseTest({})->count == 1);
  CHECK(ParseTest({"--config", path})->count == 5);
  CHECK(ParseTest({"--config", path})->json);
  CHECK(ParseTest({}, {{"ANNULUS_CONFIG", path}})->count == 5);
  CHECK(ParseTest({"--config", path}, environment)->count == 4096);
  CHECK(ParseTest({"--config", path, "--some-count", "3"}, environment)->count == 3);
  CHECK(ParseTest({"--some-count=3"}, environment)->count == 3);
  CHECK(ParseTest({}, {{"ANNULUS_JSON", "1"}})->json);
  CHECK_FALSE(ParseTest({"--json=false"}, {{"ANNULUS_JSON", "1"}})->json);
  CHECK(ParseTest({}, {{"ANNULUS_SOME_COUNT", ""}})->count == 1);
}

TEST_CASE(
    "options: a variable that no command reads is warned of, with the nearest that one does") {
  const auto said = [](const std::string& variable, const std::string& value = "4") {
    const test::Outcome outcome = test::RunHere({"version"}, {{variable, value}});
    CHECK(outcome.code == 0);
    return outcome.err;
  };
  CHECK(said("ANNULUS_KV_HEAD") ==
        "annulus: warning: ANNULUS_KV_HEAD: no option, and passed over; the nearest is "
        "ANNULUS_KV_HEADS\n");
  CheckSays(said("ANNULUS_TLS_CERTIFICATE"), "the nearest is ANNULUS_TLS_CERT\n");
  CHECK(absl::StartsWith(said("ANNULUS_\x1b[2J"), "annulus: warning: ANNULUS_\\x1b[2J: no option"));
  // Of another command, and what Kubernetes sets for a Service named annulus.
  for (const char* name :
       {"ANNULUS_KV_HEADS", "ANNULUS_TCP_PORT_RANGE", "ANNULUS_SERVICE_HOST",
        "ANNULUS_INTERNAL_SERVICE_HOST", "ANNULUS_SERVICE_PORT", "ANNULUS_SERVICE_PORT_GRPC",
        "ANNULUS_PORT", "ANNULUS_PORT_7070_TCP_ADDR"}) {
    CAPTURE(name);
    CHECK(said(name).empty());
  }
  CHECK(said("ANNULUS_KV_HEAD", "").empty());
  setenv("ANNULUS_KV_HEAD", "4", /*replace=*/1);
  const test::Outcome real = test::RunProgram({"version"});
  unsetenv("ANNULUS_KV_HEAD");
  CheckSays(real.err, "ANNULUS_KV_HEAD: no option");
}

TEST_CASE("options: one call may bring half of what a coordinator's server buffers") {
  Arguments args = {"coordinator", "--listen", "127.0.0.1:0", "--request-bytes-max", "2G"};
  const test::Outcome refused = test::RunProgram(args);
  CHECK(test::IsRefusal(refused));
  CheckSays(refused.err,
            "request_bytes_max is 2147483648; expected 1 to 1073741824, half of buffer_bytes_max");
  args.insert(args.end(), {"--buffer-bytes-max", "4G"});
  test::Program served(args);
  CheckSays(served.ReadLine(), "ready ");
}

TEST_CASE("options: what all processes of a cluster would refuse is refused once, in one line") {
  const test::TempFolder folder;
  const std::string no_folder = folder / "no/spans";
  for (const auto& [args, says] :
       {std::pair(Arguments{"--heartbeat-ms", "600"},
                  "--heartbeat-timeout-ms: 1000; expected at least twice --heartbeat-ms, 600\n"),
        {Arguments{"--trace-out", no_folder}, "expected a file that can be written to\n"},
        {Arguments{"--transports", "carrier-pigeon"}, "carrier-pigeon"}}) {
    for (const Arguments& command :
         {Arguments{"up", "--workers", "2"}, Arguments{"coordinator", "--listen", "127.0.0.1:0"}}) {
      Arguments whole = command;
      whole.insert(whole.end(), args.begin(), args.end());
      const test::Outcome outcome = test::RunProgram(whole);
      INFO(outcome.err);
      CHECK(test::IsRefusal(outcome));
      CheckSays(outcome.err, says);
      CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
    }
  }
  const test::Outcome worker =
      test::RunProgram({"worker", "--coordinator", "127.0.0.1:1", "--heartbeat-timeout-ms", "150"});
  CHECK(test::IsRefusal(worker));
  CheckSays(worker.err, "--heartbeat-timeout-ms: 150; expected at least twice");
}

TEST_CASE("options: what says something to a service alone is refused without one") {
  const std::pair<const char*, const char*> of_service[] = {
      {"--tls-ca", "ca.pem"}, {"--tls-cert", "c.pem"}, {"--tls-key", "k.pem"},
      {"--token-file", "t"},  {"--upload", "relay"},   {"--kv-placement", "heads"}};
  for (const auto& [option, value] : of_service) {
    const Arguments args = {"attend", "--q",       "q.npy",  "--k",  "k.npy", "--out",
                            "o.npy",  "--pattern", "causal", option, value};
    const test::Outcome outcome = test::RunHere(args);
    CHECK(test::IsRefusal(outcome));
    CheckSays(outcome.err,
              absl::StrCat(option, ": \"", value, "\"; expected only with --endpoint"));
    // A variable is for all commands.
    const std::string name = absl::StrCat(
        "ANNULUS_", absl::AsciiStrToUpper(absl::StrReplaceAll(option + 2, {{"-", "_"}})));
    const test::Outcome shared =
        test::RunHere(Arguments(args.begin(), args.end() - 2), {{name, value}});
    CheckSays(shared.err, "q.npy");
  }
  for (const char* option : {"--cluster", "--calibration"}) {
    const test::Outcome outcome =
        test::RunHere({"attend", "--q", "q.npy", "--k", "k.npy", "--out", "o.npy", "--pattern",
                       "causal", "--endpoint", "127.0.0.1:1", option, "m.json"});
    CHECK(test::IsRefusal(outcome));
    CheckSays(outcome.err, absl::StrCat(option, " and --endpoint: both given"));
  }
}

TEST_CASE("options: whatever names a plan says that auto is one") {
  for (const char* command : {"attend", "explain"}) {
    CheckSays(test::RunHere({command, "--help"}).out, "auto|");
    CheckSays(test::RunHere({"explain", "--tokens", "64", "--heads", "1", "--kv-heads", "1",
                             "--head-dim", "8", "--pattern", "full", "--plan", "rong"})
                  .err,
              "--plan: \"rong\"; expected one of auto, ");
  }
}

TEST_CASE("options: a section is for its command, and patterns need no quotes") {
  const test::TempFolder folder;
  const std::string path = folder / "a.conf";
  test::WriteBytes(path, "[explain]\n  text = s2(64, 4,16) & (window(4)|sink(1)) \r\n[up]\nx=1\n");
  CHECK(ParseTest({"--config", path})->text == "s2(64, 4,16) & (window(4)|sink(1))");
  for (const char* other : {"methods", "quality", "worker"}) {
    test::WriteBytes(path, absl::StrCat("[", other, "]\nx = 1\n"));
    CHECK(ParseTest({"--config", path}).ok());
  }
  test::WriteBytes(path, "text = \"causal # not a comment\"\n");
  CHECK(ParseTest({"--config", path})->text == "causal # not a comment");
}

TEST_CASE("options: refusals name the option, its source and the value") {
  const test::TempFolder folder;
  const std::string path = folder / "a.conf";
  const auto with_file = [&](absl::string_view text) {
    test::WriteBytes(path, text);
    return Refusal(ParseTest({"--config", path}));
  };
  CheckSays(Refusal(ParseTest({"--some-count", "0"})), "--some-count: \"0\"; expected");
  CheckSays(Refusal(ParseTest({}, {{"ANNULUS_SOME_COUNT", "-1"}})), "ANNULUS_SOME_COUNT: \"-1\"");
  CheckSays(with_file("some-count = many\n"), "a.conf\" some-count: \"many\"");
  CheckSays(with_file("sum-count = 1\n"), "key \"sum-count\": unknown; expected");
  CheckSays(with_file("[explian]\njson = 1\n"), "section \"explian\": unknown; expected");
  CheckSays(with_file("json = 1\njson = 0\n"), "given twice");
  CheckSays(with_file("json = maybe\n"), "expected true or false");
  CheckSays(with_file("\n\nnonsense\x1b[2J\n"), "line 3");
  CheckSays(Refusal(ParseTest({"--config", folder / "none.conf"})), "none.conf");
  CheckSays(Refusal(ParseTest({"--unknown", "1"})), "--unknown");
  CheckSays(Refusal(ParseTest({"stray"})), "stray");
  CheckSays(Refusal(ParseTest({"--text"})), "--text");
  CheckSays(Refusal(ParseTest({"--text", "a", "--text", "b"})), "--text");
}

TEST_CASE("options: of two that exclude each other the stronger source's stays") {
  CheckSays(Refusal(ParseTest({"--some-count", "2", "--text", "a"})),
            "--some-count and --text: both given; expected");
  const absl::StatusOr<Values> flag = ParseTest({"--text", "a"}, {{"ANNULUS_SOME_COUNT", "7"}});
  CHECK(flag->count == 1);
  CHECK(flag->text == "a");
}

TEST_CASE("options: counts") {
  CHECK(ParseCount("0", 0, 1).value() == 0);
  CHECK(ParseCount("10M", 0, INT64_MAX).value() == 10 << 20);
  CHECK(ParseCount("3G", 0, INT64_MAX).value() == int64_t{3} << 30);
  CHECK(ParseCount("9223372036854775807", 0, INT64_MAX).value() == INT64_MAX);
  for (const char* bad : {"", "K", "1k", "1KB", "1.5", "1e3", " 1", "1 ", "+1", "-1", "0x10", "1_0",
                          "9223372036854775808", "9007199254740992K", "8589934592G"}) {
    CAPTURE(bad);
    CHECK_FALSE(ParseCount(bad, 0, INT64_MAX).ok());
  }
}

TEST_CASE("options: endpoints") {
  for (const char* good : {"localhost:1", "127.0.0.1:65535", "[::1]:7070", "a.b-c:0"}) {
    CHECK(ParseEndpoint(good).value() == good);
  }
  for (const char* bad : {"", ":", ":1", "host", "host:", "host:65536", "host:-1", "host:7K",
                          "host: 1", "ho st:1", "dns:///x:1", "host:1\n"}) {
    CAPTURE(bad);
    CHECK_FALSE(ParseEndpoint(bad).ok());
  }
}

TEST_CASE("cluster files: every field, and refusals by field") {
  const absl::StatusOr<ClusterFile> cluster = ParseCluster(
      R"({"nodes": 8, "workers_per_node": 4, "inside_gb_per_s": 100, "inside_us": 5,
          "between_gb_per_s": 12.5, "between_us": 0, "flops": 1e14, "read_gb_per_s": 3000})");
  REQUIRE(cluster.ok());
  CHECK(cluster->workers_max == 32);
  CHECK(cluster->model.workers_per_node == 4);
  CHECK(cluster->model.inside_bytes_per_s == Approx(1e11));
  CHECK(cluster->model.inside_latency_s == Approx(5e-6));
  CHECK(cluster->model.between_bytes_per_s == Approx(1.25e10));
  CHECK(cluster->model.between_latency_s == 0);
  CHECK(cluster->model.flops == Approx(1e14));
  CHECK(cluster->model.read_bytes_per_s == Approx(3e12));
  for (const auto& [json, field] :
       {std::pair(R"({"nodes": 0})", "nodes"),
        {R"({"nodes": 1.5})", "nodes"},
        {R"({"workers_per_node": "4"})", "workers_per_node"},
        {R"({"flops": -1})", "flops: -1; expected a positive number"},
        {R"({"inside_gb_per_s": 0})", "inside_gb_per_s"},
        {R"({"between_us": null})", "between_us"},
        {R"({"speed": 1})", "speed"},
        {R"({"nodes": 1, "nodes": 2})", "\"nodes\" comes twice"},
        {R"([1])", "content: a list of 1; expected a JSON object"},
        {"{\"flops\":\n 1", "content: the end at line 2, column 3; expected JSON"},
        {"", "content: the end at line 1, column 1; expected JSON"}}) {
    CAPTURE(json);
    const absl::Status status = ParseCluster(json).status();
    CHECK(absl::IsInvalidArgument(status));
    CHECK(absl::StrContains(status.message(), field));
  }
}

TEST_CASE("options: hostile config and cluster files are refused in one line or read") {
  const uint64_t seed = 6;
  CAPTURE(seed);
  Rng rng(seed);
  const std::string config =
      "# c\nsome-count = 5\n[explain]\ntext = \"s2(64,4,16)\"\njson = true\n";
  const std::string cluster =
      R"({"nodes": 8, "workers_per_node": 4, "inside_us": 5, "flops": 1e9})";
  int accepted = 0;
  for (int i = 0; i < 10000; ++i) {
    for (const absl::Status& status : {ParseConfig(test::Mutated(rng, config)).status(),
                                       ParseCluster(test::Mutated(rng, cluster)).status()}) {
      accepted += status.ok();
      if (status.ok()) continue;
      REQUIRE(absl::IsInvalidArgument(status));
      REQUIRE_FALSE(absl::StrContains(status.message(), "\n"));
    }
  }
  CHECK(accepted > 100);
}

TEST_CASE("options: hostile command lines end with 0 or a refusal") {
  const uint64_t seed = 7;
  CAPTURE(seed);
  Rng rng(seed);
  const auto pick = [&](std::initializer_list<const char*> texts) {
    return std::string(texts.begin()[rng.Below(texts.size())]);
  };
  int accepted = 0;
  for (int i = 0; i < 10000; ++i) {
    Arguments args = {"explain", "--json"};
    const auto add = [&](const char* flag, std::string value) {
      if (rng.Below(40) == 0) return;
      if (rng.Below(20) == 0) value = test::Mutated(rng, value + "?");
      args.insert(args.end(), {flag, value});
    };
    add("--tokens", pick({"64", "100", "300", "1", "128", "-1", "99999999999999999999"}));
    add("--heads", pick({"4", "8", "4", "8", "4", "8", "0"}));
    add("--kv-heads", pick({"1", "2", "4", "1", "2", "3", ""}));
    add("--head-dim", pick({"8", "64", "576", "64", "7", "577"}));
    add("--workers", pick({"1", "2", "7", "3", "0"}));
    add("--pattern", pick({"causal", "s2(64,1,2)", "full & window(9)", "heads(0: causal)"}));
    if (rng.Below(3) == 0) add("--plan", pick({"auto", "ring", "mesh", "rong"}));
    if (rng.Below(3) == 0) add("--placement", pick({"zigzag", "striped", "block-cyclic:2"}));
    if (rng.Below(9) == 0) args[rng.Below(args.size())] = test::Mutated(rng, "--tokens");
    if (std::find(args.begin(), args.end(), "--help") != args.end()) continue;
    const test::Outcome outcome = test::RunHere(args);
    INFO("args " << absl::StrJoin(args, " ") << " gave " << outcome.code << " " << outcome.err);
    accepted += outcome.code == 0;
    REQUIRE((outcome.code == 0 || test::IsRefusal(outcome)));
  }
  CHECK(accepted > 500);
}

}  // namespace
}  // namespace annulus
