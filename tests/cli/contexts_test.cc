// What a service holds for callers of the command line: listed, given back, and never left behind.
#include <signal.h>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "annulus/client.h"
#include "tests/catch.h"
#include "tests/cli/program.h"

namespace annulus {
namespace {

using nlohmann::json;
using test::Outcome;
using test::Program;
using test::RunHere;

// A cluster of two workers, and files whose attention takes a while.
struct Service {
  Service() {
    endpoint = json::parse(up.ReadLine())["endpoint"];
    Rng rng(3);
    for (const auto& [name, shape] : {std::pair("q", std::vector<int64_t>{2000, 8, 64}),
                                      {"k", {6000, 4, 64}},
                                      {"v", {6000, 4, 64}}}) {
      test::WriteBytes(folder / absl::StrCat(name, ".npy"),
                       test::TestTensor::Random(rng, DType::kF32, shape).Npy());
    }
  }

  Arguments Attend(const Arguments& more) const {
    Arguments args = {"attend",
                      "--endpoint",
                      endpoint,
                      "--q",
                      folder / "q.npy",
                      "--k",
                      folder / "k.npy",
                      "--v",
                      folder / "v.npy",
                      "--out",
                      folder / "o.npy",
                      "--pattern",
                      "full"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }

  std::vector<json> Contexts() const {
    const Outcome outcome = RunHere({"contexts", "--endpoint", endpoint, "--json"});
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    std::vector<json> contexts;
    for (const auto line : absl::StrSplit(outcome.out, '\n', absl::SkipEmpty())) {
      contexts.push_back(json::parse(line.begin(), line.end()));
    }
    return contexts;
  }

  // Whether an attend has its context within some seconds.
  bool HasContext() const {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (Contexts().empty() && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(10));
    return !Contexts().empty();
  }

  test::TempFolder folder;
  Program up{{"up", "--workers", "2", "--threads", "1", "--json", "--kv-bytes-limit", "16M"}};
  std::string endpoint;
};

TEST_CASE("attend gives its context back on every way out") {
  const Service service;
  for (const int signal : {SIGINT, SIGTERM, SIGQUIT, SIGHUP}) {
    CAPTURE(signal);
    Program attend(service.Attend({"--repeat", "100000"}));
    REQUIRE(service.HasContext());
    attend.Signal(signal);
    const Outcome outcome = attend.Wait();
    CHECK(outcome.code == 1);
    CHECK(absl::StartsWith(outcome.err, "annulus: CANCELLED: ended by signal"));
    CHECK(service.Contexts().empty());
  }
  // More KV than the workers take, which an append is refused for.
  Rng rng(5);
  const std::string big = service.folder / "big.npy";
  test::WriteBytes(big, test::TestTensor::Random(rng, DType::kF32, {24'000, 4, 64}).Npy());
  const Outcome refused =
      RunHere({"attend", "--endpoint", service.endpoint, "--q", big, "--k", big, "--v", big,
               "--out", service.folder / "o.npy", "--pattern", "full"});
  CHECK(absl::StartsWith(refused.err, "annulus: RESOURCE_EXHAUSTED"));
  CHECK(service.Contexts().empty());
  // An answer that cannot be told any more.
  const Outcome unread = test::RunProgramTo("/dev/full", service.Attend({"--json"}));
  CHECK(unread.code == 1);
  CHECK(absl::StartsWith(unread.err, "annulus: UNAVAILABLE: stdout"));
  CHECK(service.Contexts().empty());
}

TEST_CASE("contexts lists what a service holds, release gives it back") {
  const Service service;
  const auto client = Client::Connect({.endpoint = service.endpoint});
  REQUIRE(client.ok());
  ContextSpec spec;
  spec.layers = 3;
  spec.heads = spec.kv_heads = 2;
  spec.head_dim = spec.v_head_dim = 16;
  std::vector<std::string> ids;
  for (int i = 0; i < 5; ++i) {
    const auto context = (*client)->CreateContext(spec);
    REQUIRE(context.ok());
    ids.push_back(absl::StrCat(context->id));
  }
  const std::vector<json> contexts = service.Contexts();
  REQUIRE(contexts.size() == 5);
  CHECK(absl::StrCat(contexts[0]["id"].get<uint64_t>()) == ids[0]);
  CHECK(contexts[0]["layers"] == 3);
  CHECK(contexts[0]["tokens"] == 0);
  CHECK(contexts[0]["state"] == "ok");
  const Outcome text = RunHere({"contexts", "--endpoint", service.endpoint});
  CHECK(text.code == 0);
  CHECK(text.err == "");
  for (const std::string& id : ids) CHECK(absl::StrContains(text.out, id));

  const auto release = [&](Arguments more) {
    Arguments args = {"release", "--endpoint", service.endpoint};
    args.insert(args.end(), more.begin(), more.end());
    return RunHere(args);
  };
  const Outcome two = release({ids[1], ids[3], ids[1]});
  CHECK(two.code == 0);
  CHECK(two.out == absl::StrCat("released ", ids[1], "\nreleased ", ids[3], "\n"));
  CHECK(service.Contexts().size() == 3);

  // One that is not there is told, and keeps none of the others.
  const Outcome unknown = release({ids[1], ids[0]});
  CHECK(unknown.code == 1);
  CHECK(unknown.out == absl::StrCat("released ", ids[0], "\n"));
  CHECK(absl::StrContains(unknown.err, absl::StrCat("context ", ids[1], ": none in ")));
  CHECK(service.Contexts().size() == 2);

  for (const Arguments& bad : {Arguments{"abc"},
                               {"0"},
                               {"-1"},
                               {"18446744073709551616"},
                               {},
                               {ids[2], "--all"},
                               {ids[2], "--alll"}}) {
    const Outcome outcome = release(bad);
    INFO(outcome.err);
    CHECK(test::IsRefusal(outcome));
  }
  CHECK(service.Contexts().size() == 2);
  CHECK(release({"--all"}).code == 0);
  CHECK(service.Contexts().empty());
  CHECK(release({"--all"}).code == 0);
}

TEST_CASE("a refused connection is told at once, by every command of a client") {
  const test::TempFolder folder;
  Rng rng(4);
  const test::TestTensor tensor = test::TestTensor::Random(rng, DType::kF32, {2, 1, 8});
  test::WriteBytes(folder / "x.npy", tensor.Npy());
  const std::string x = folder / "x.npy";
  for (const Arguments& args :
       {Arguments{"status"},
        {"contexts"},
        {"release", "1"},
        {"attend", "--q", x, "--k", x, "--v", x, "--out", folder / "o.npy", "--pattern", "full"}}) {
    Arguments all = args;
    all.insert(all.end(), {"--endpoint", "127.0.0.1:1"});
    const absl::Time begin = absl::Now();
    const Outcome outcome = RunHere(all);
    INFO(outcome.err);
    CHECK(absl::Now() - begin < absl::Seconds(1));
    CHECK(outcome.code == 1);
    CHECK(absl::StrContains(outcome.err, "\"127.0.0.1:1\": connection refused"));
  }
}

}  // namespace
}  // namespace annulus
