// Outputs of the commands: what cannot be written, or would overwrite something, is refused before
// any work; what is kept for later runs hinders none.
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "runtime/cli/demo/report.h"
#include "runtime/cli/files/cluster_file.h"
#include "tests/catch.h"
#include "tests/cli/program.h"

namespace annulus {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::Outcome;
using test::Program;
using test::RunHere;

const Arguments kExplain = {"explain", "--tokens",   "4K", "--heads",   "2",      "--kv-heads",
                            "2",       "--head-dim", "16", "--pattern", "causal", "--json"};

Arguments With(Arguments args, const Arguments& more) {
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

TEST_CASE("outputs of commands that would overwrite one another or an input are refused") {
  const test::TempFolder folder;
  Rng rng(4);
  const std::string x = folder / "x.npy";
  const std::string bytes = test::TestTensor::Random(rng, DType::kF32, {2, 1, 8}).Npy();
  test::WriteBytes(x, bytes);
  const std::string st = folder / "x.safetensors";
  test::WriteBytes(
      st, test::Safetensors({{"a", test::TestTensor::Random(rng, DType::kF32, {2, 1, 8})}}));
  fs::create_hard_link(x, folder / "hard.npy");
  fs::create_symlink("x.npy", folder / "soft.npy");
  fs::create_symlink("x.safetensors", folder / "st.npy");
  const Arguments attend = {"attend", "--q", x, "--k", x, "--v", x, "--pattern", "full"};
  for (const Arguments& more : {Arguments{"--out", x},
                                {"--out", folder / "hard.npy"},
                                {"--out", folder / "soft.npy"},
                                {"--out", folder / "o.npy", "--lse", folder / "o.npy"},
                                {"--out", folder / "o.npy", "--lse", folder / "./o.npy"},
                                {"--out", folder / "o.npy", "--lse", x},
                                {"--out", folder / "no/o.npy"},
                                {"--out", "/dev/full"},
                                {"--out", folder / "o.npy", "--lse", "/dev/full"},
                                {"--out", folder / ""}}) {
    const Outcome outcome = RunHere(With(attend, more));
    INFO(outcome.err);
    CHECK(test::IsRefusal(outcome));
    CHECK(!fs::exists(folder / "o.npy"));
  }
  const std::string in = st + ":a";
  CHECK(test::IsRefusal(RunHere({"attend", "--q", in, "--k", in, "--v", in, "--pattern", "full",
                                 "--out", folder / "st.npy"})));
  CHECK(test::ReadBytes(x) == bytes);

  const std::string cluster = folder / "c.json";
  test::WriteBytes(cluster, "{}");
  const Outcome svg = RunHere(With(kExplain, {"--cluster", cluster, "--svg", cluster}));
  CHECK(test::IsRefusal(svg));
  CHECK(absl::StrContains(svg.err, ", the file of --cluster; expected"));
  CHECK(test::IsRefusal(RunHere(With(kExplain, {"--svg", folder / "no/p.svg"}))));
  fs::create_directory(folder / "demo");
  fs::create_symlink("block-map.svg", folder / "demo/trace.json");
  CHECK(test::IsRefusal(RunHere({"demo", "--out-dir", folder / "demo"})));
}

TEST_CASE("errors keep the end of a long path: the file and the tensor") {
  const test::TempFolder folder;
  std::string path = folder / "";
  for (int i = 0; i < 4; ++i) path += std::string(200, 'd') + "/";
  const Outcome npy = RunHere({"attend", "--q", path + "the-queries.npy", "--k", "k.npy", "--v",
                               "v.npy", "--out", folder / "o.npy", "--pattern", "full"});
  CHECK(test::IsRefusal(npy));
  CHECK(absl::StrContains(npy.err, "the-queries.npy"));
  Rng rng(5);
  const std::string name = std::string(200, 'n') + ".layers.31.the-keys";
  test::WriteBytes(folder / "f.safetensors",
                   test::Safetensors({{name, test::TestTensor::Random(rng, DType::kF32, {2, 8})}}));
  const std::string in = absl::StrCat(folder / "f.safetensors", ":", name);
  const Outcome tensor = RunHere(
      {"attend", "--q", in, "--k", in, "--v", in, "--out", folder / "o.npy", "--pattern", "full"});
  CHECK(test::IsRefusal(tensor));
  CHECK(absl::StrContains(tensor.err, ".layers.31.the-keys"));
  CHECK(absl::StrContains(tensor.err, "shape: (2, 8); expected"));
}

TEST_CASE("a cache that is damaged is made anew, one that cannot be written is told, in one line") {
  const test::TempFolder folder;
  const test::Variables home = {{"HOME", folder / ""}, {"ANNULUS_CLUSTER", ""}};
  const std::string path = folder / ".cache/annulus/machine.json";
  fs::create_directories(folder / ".cache/annulus");
  for (const std::string damaged : {"", "{", "[]", "{\"flops\": -1}", "\xff\xfe"}) {
    CAPTURE(damaged);
    test::WriteBytes(path, damaged);
    const Outcome outcome = RunHere(kExplain, home);
    INFO(outcome.err);
    CHECK(outcome.code == 0);
    CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
    CHECK(absl::StrContains(outcome.err, "machine.json"));
    CHECK(ReadCluster(path).ok());
    if (damaged.empty()) CHECK(RunHere(kExplain, home).err == "");
  }
  // Nothing can be kept where a file stands in for a folder, or a folder for the file.
  fs::remove(path);
  fs::create_directory(path);
  const Outcome folder_there = RunHere(kExplain, home);
  INFO(folder_there.err);
  CHECK(folder_there.code == 0);
  CHECK(std::count(folder_there.err.begin(), folder_there.err.end(), '\n') == 1);
  fs::remove_all(folder / ".cache");
  test::WriteBytes(folder / ".cache", "");
  const Outcome no_folder = RunHere(kExplain, home);
  CHECK(no_folder.code == 0);
  CHECK(std::count(no_folder.err.begin(), no_folder.err.end(), '\n') == 1);
  CHECK(absl::StrContains(no_folder.err, "are not kept"));
}

TEST_CASE("explain knows clusters by name, and says which") {
  std::vector<std::string> names = absl::StrSplit(KnownClusters(), ", ");
  REQUIRE(names.size() >= 4);
  for (const std::string& name : names) {
    CAPTURE(name);
    const Outcome outcome = RunHere(With(kExplain, {"--cluster", name, "--workers", "64"}));
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    const json report = json::parse(outcome.out);
    CHECK(report["calibration"]["source"] == name);
    CHECK(report["calibration"]["flops"].get<double>() >= 1e12);
  }
  CHECK(absl::StrContains(RunHere({"explain", "--help"}).out, "h100x8"));
  const Outcome unknown = RunHere(With(kExplain, {"--cluster", "h100x9"}));
  CHECK(test::IsRefusal(unknown));
  CHECK(absl::StrContains(unknown.err, KnownClusters()));
}

TEST_CASE("the first line of an error is ours, whichever library found it") {
  Program holder({"coordinator", "--listen", "127.0.0.1:0", "--log-level", "off"});
  const std::string endpoint = std::string(absl::StripPrefix(holder.ReadLine(), "ready "));
  const Arguments coordinator = {"coordinator", "--listen", "127.0.0.1:0", "--log-level", "error"};
  struct Case {
    Arguments args;
    int code;
    std::string names;
  };
  const Case cases[] = {
      {{"coordinator", "--listen", endpoint}, 1, endpoint},  // gRPC
      {With(coordinator, {"--http-listen", endpoint}), 1, endpoint},
      {With(coordinator, {"--transports", "nonsense"}), 2, "transports \"nonsense\""},  // UCX
      {With(coordinator, {"--net-devices", "nonsense"}), 2, "net_devices \"nonsense\""},
      {With(coordinator, {"--tcp-port-range", "1"}), 2, "--tcp-port-range"},
      {With(coordinator, {"--nonsense"}), 2, "\"--nonsense\": unknown; expected"},  // CLI11
      {With(coordinator, {"--transports"}), 2,
       "--transports: given twice, or without a value; expected once, with one value"},
      {With(coordinator, {"--log-level", "off"}), 2,
       "--log-level: given twice, or without a value; expected once"},
      {With(kExplain, {"--json=maybe"}), 2, "--json: \"true,maybe\"; expected true or false"},
      {With(kExplain, {"more"}), 2, "\"more\": unknown; expected"},
  };
  for (const Case& c : cases) {
    const Outcome outcome = test::RunProgram(c.args);
    INFO(outcome.err);
    CHECK(outcome.code == c.code);
    CHECK(absl::StartsWith(outcome.err, "annulus: "));
    CHECK(absl::StrContains(outcome.err, c.names));
    CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
  }
}

}  // namespace
}  // namespace annulus
