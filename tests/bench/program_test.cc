// The program annulus_bench as mpirun's ranks: every plan over both transports is right to the
// byte, and what it prints keeps its names.
#include <sys/wait.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "tests/catch.h"

namespace annulus {
namespace {

using Json = nlohmann::json;

constexpr char kAllPlans[] = "ring,ring-contiguous,heads,mesh,group-cast,pass-q";

// As ARCHITECTURE.md and the pictures have them; more may follow.
constexpr char kHeader[] =
    "plan,pattern,tokens,heads,kv_heads,head_dim,dtype,backend,transport,world,ms,tflops_per_rank,"
    "pct_of_single,bytes_sent,planned_bytes,exposed_comm_ms,max_over_mean_work,max_rel_err";

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

struct Outcome {
  int code = 0;
  std::string out;
  std::string err;

  std::vector<Json> rows() const {
    std::vector<Json> rows;
    for (const absl::string_view line : absl::StrSplit(out, '\n', absl::SkipEmpty())) {
      rows.push_back(Json::parse(std::string(line)));
    }
    return rows;
  }
};

// A folder for what runs write.
class Folder {
 public:
  Folder() : path_((std::filesystem::temp_directory_path() / "annulus-bench-XXXXXX").string()) {
    REQUIRE(mkdtemp(path_.data()) != nullptr);
    // Plans are weighed for machines that are not measured: the same everywhere.
    std::ofstream(path_ + "/cluster.json") << R"({"flops": 5e10})";
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string operator/(const char* name) const { return absl::StrCat(path_, "/", name); }

 private:
  std::string path_;
};

const Folder& TheFolder() {
  static const Folder folder;
  return folder;
}

std::string ShellQuoted(const std::string& text) {
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "'\\''"}}), "'");
}

std::string TheProgram() {
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() / "annulus_bench").string();
}

// `launcher`: what comes before the program's name.
Outcome Run(const std::string& launcher, const std::vector<std::string>& args) {
  std::string command =
      absl::StrCat(ANNULUS_MPI_ENVIRONMENT, " ", launcher, " ", ShellQuoted(TheProgram()));
  for (const std::string& arg : args) absl::StrAppend(&command, " ", ShellQuoted(arg));
  const std::string out = TheFolder() / "out";
  const std::string err = TheFolder() / "err";
  const int status = std::system(absl::StrCat(command, " >", out, " 2>", err).c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, ReadAll(out), ReadAll(err)};
}

Outcome RunRanks(int ranks, const std::vector<std::string>& args) {
  return Run(absl::StrCat(ANNULUS_MPIEXEC, " --oversubscribe -np ", ranks), args);
}

std::vector<std::string> ArgsOf(const std::string& pattern, const std::string& tokens,
                                std::vector<std::string> more) {
  std::vector<std::string> args = {"--pattern",  pattern,
                                   "--tokens",   tokens,
                                   "--heads",    "8",
                                   "--kv-heads", "4",
                                   "--head-dim", "32",
                                   "--repeat",   "1",
                                   "--cluster",  TheFolder() / "cluster.json"};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

void CheckRow(const Json& row, int ranks) {
  INFO(row.dump());
  CHECK(row["world"] == ranks);
  CHECK(row["bytes_sent"] == row["planned_bytes"]);
  CHECK((ranks == 1) == (row["bytes_sent"] == 0));
  CHECK(row["checked_rows"] > 0);
  CHECK(row["max_rel_err"] > 0);
  CHECK(row["ms"] > 0);
  CHECK(row["tflops_per_rank"] > 0);
  CHECK(row["exposed_comm_ms"] >= 0);
  CHECK(row["exposed_comm_ms"] <= row["ms"]);
  CHECK(row["max_over_mean_work"] >= 1);
}

TEST_CASE("every plan over both transports is right, to the byte", "[ranks]") {
  struct Case {
    int ranks;
    const char* transport;
    const char* pattern;
    const char* tokens;
    std::vector<std::string> more;
  };
  const Case cases[] = {
      {2, "mpi", "causal", "1500", {"--dtype", "f32"}},
      {2, "ucx", "causal", "1500", {"--dtype", "f32"}},
      {3, "mpi", "docs(700,1300,1000) & causal", "3000", {"--dtype", "f16", "--v-head-dim", "16"}},
      {3, "ucx", "docs(700,1300,1000) & causal", "3000", {"--dtype", "f16", "--v-head-dim", "16"}},
      {4, "mpi", "s2(64,2,4)", "4K", {"--q-tokens", "1K", "--placement", "striped"}},
      {4, "ucx", "s2(64,2,4)", "4K", {"--q-tokens", "1K", "--placement", "striped"}},
      {5, "mpi", "heads(0: causal; 1-3: window(300))", "3000", {}},
      {6, "ucx", "s2(64,4,8,dense_heads=1)", "4000", {}},
      {7, "ucx", "causal", "3333", {}},
      {8, "mpi", "docs(2085,1061,549,293,108) & causal", "4K", {}},
      {8, "ucx", "heads(0: causal; 1-3: window(300))", "4K", {}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.ranks, c.transport, c.pattern);
    std::vector<std::string> more = c.more;
    more.insert(more.end(), {"--transport", c.transport, "--plan", kAllPlans, "--check", "--json",
                             "--csv", TheFolder() / "ranks.csv"});
    const Outcome outcome = RunRanks(c.ranks, ArgsOf(c.pattern, c.tokens, more));
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    const std::vector<Json> rows = outcome.rows();
    REQUIRE(rows.size() == 6);
    const std::vector<std::string> plans = absl::StrSplit(kAllPlans, ',');
    for (size_t i = 0; i < rows.size(); ++i) {
      CHECK(rows[i]["plan"] == plans[i]);
      CHECK(rows[i]["pattern"] == c.pattern);
      CHECK(rows[i]["transport"] == c.transport);
      CheckRow(rows[i], c.ranks);
    }
    const std::vector<std::string> csv =
        absl::StrSplit(ReadAll(TheFolder() / "ranks.csv"), '\n', absl::SkipEmpty());
    REQUIRE(csv.size() == 7);
    CHECK(absl::StartsWith(csv[0], absl::StrCat(kHeader, ",")));
    for (const absl::string_view name : absl::StrSplit(csv[0], ',')) {
      CHECK(rows[0].contains(std::string(name)));
    }
  }
}

TEST_CASE("decode over ranks, and the planner's own choice", "[ranks]") {
  const Outcome outcome = RunRanks(
      4, ArgsOf("causal", "8K", {"--q-tokens", "1", "--plan", "auto,pass-q", "--check", "--json"}));
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  const std::vector<Json> rows = outcome.rows();
  REQUIRE(rows.size() == 2);
  CHECK(rows[0]["plan"] == "pass-q");
  CHECK(rows[1]["plan"] == "pass-q");
  CHECK(rows[0]["chosen"] == true);
  CHECK(rows[1]["chosen"] == false);
  for (const Json& row : rows) {
    CheckRow(row, 4);
    CHECK(row["tokens"] == 1);
    CHECK(row["kv_tokens"] == 8192);
  }
}

TEST_CASE("group-cast of s2(64,4,16) over 4 ranks moves at most 0.15 of a ring", "[ranks]") {
  const Outcome outcome =
      RunRanks(4, ArgsOf("s2(64,4,16)", "16K", {"--plan", "ring,group-cast", "--check", "--json"}));
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  const std::vector<Json> rows = outcome.rows();
  REQUIRE(rows.size() == 2);
  for (const Json& row : rows) CheckRow(row, 4);
  // (W − 1) · tokens · KV heads · (d + d_v) · 2 bytes.
  const int64_t full_ring = int64_t{3} * 16384 * 4 * 64 * 2;
  CHECK(rows[0]["bytes_sent"] == full_ring);
  CHECK(static_cast<double>(rows[1]["bytes_sent"]) <= 0.15 * static_cast<double>(full_ring));
}

TEST_CASE("alone, without mpirun, it is a world of one", "[ranks]") {
  const Outcome outcome =
      Run("", ArgsOf("causal", "2K", {"--plan", kAllPlans, "--check", "--json", "--threads", "1"}));
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  REQUIRE(outcome.rows().size() == 6);
  for (const Json& row : outcome.rows()) {
    CheckRow(row, 1);
    CHECK(row["oversubscribed"] == false);
    CHECK(row["single_share"] == 1.0);
    CHECK(row["pct_of_single"] > 0);
  }
}

TEST_CASE("ranks that were asked for different things say so", "[ranks]") {
  struct Case {
    std::vector<std::string> first, second;
    const char* says;
  };
  const Case cases[] = {
      {{"--plan", "ring,heads"},
       {"--plan", "ring"},
       R"(--plan: "ring" on rank 1; expected "ring,heads", as rank 0 has it)"},
      {{}, {"--check"}, R"(--check: "true" on rank 1; expected "false", as rank 0 has it)"},
      {{"--check", "--check-rows", "7"},
       {"--check"},
       R"(--check-rows: "32" on rank 1; expected "7", as rank 0 has it)"},
      {{"--backend", "cpu"},
       {"--backend", "reference"},
       R"(--backend: "reference" on rank 1; expected "cpu", as rank 0 has it)"},
      {{}, {"--help"}, R"(--help: "true" on rank 1; expected "false", as rank 0 has it)"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.says);
    std::string first;
    for (const std::string& arg : ArgsOf("causal", "1K", c.first)) {
      absl::StrAppend(&first, " ", ShellQuoted(arg));
    }
    const Outcome outcome = Run(absl::StrCat(ANNULUS_MPIEXEC, " --oversubscribe -np 1 ",
                                             ShellQuoted(TheProgram()), first, " : -np 1"),
                                ArgsOf("causal", "1K", c.second));
    INFO(outcome.err);
    CHECK(outcome.code == 2);
    CHECK(outcome.out == "");
    CHECK(absl::StrContains(outcome.err, c.says));
  }
}

TEST_CASE("what was not measured is told as that", "[ranks]") {
  const std::string csv = TheFolder() / "alone.csv";
  const Outcome outcome = Run(
      "", ArgsOf("causal", "1K",
                 {"--plan", "ring", "--single-s", "0", "--json", "--threads", "1", "--csv", csv}));
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  for (const char* column : {"pct_of_single", "single_ms", "single_share"}) {
    CHECK(outcome.rows()[0][column].is_null());
  }
  CHECK(absl::StrContains(ReadAll(csv), ",,"));
  // Where no key is seen there is no rate either.
  const Outcome nothing =
      Run("", ArgsOf("window(0)", "1K", {"--plan", "ring", "--json", "--threads", "1"}));
  INFO(nothing.err);
  REQUIRE(nothing.code == 0);
  for (const char* column : {"pct_of_single", "single_ms", "single_share", "tflops_per_rank"}) {
    CHECK(nothing.rows()[0][column].is_null());
  }
}

TEST_CASE("figures that are saved are those that one rank alone reached", "[ranks]") {
  const std::string saved = TheFolder() / "saved.json";
  const Outcome outcome =
      RunRanks(2, ArgsOf("causal", "2K", {"--plan", "ring", "--json", "--save-cluster", saved}));
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  const Json cluster = Json::parse(ReadAll(saved));
  const double pairs = 8.0 * (32 * 33 / 2) * 64 * 64;  // whole cells of 64 × 64
  const double flops = 4 * pairs * 32 / (outcome.rows()[0]["single_ms"].get<double>() / 1e3);
  CHECK(std::abs(cluster["flops"].get<double>() / flops - 1) < 1e-6);
  CHECK(cluster["inside_gb_per_s"] == 4.0);  // as --cluster has it
}

TEST_CASE("more ranks than cores: it is said that times mean nothing", "[ranks]") {
  const int ranks = static_cast<int>(std::thread::hardware_concurrency()) + 1;
  if (ranks > 9) return;
  const Outcome outcome = RunRanks(ranks, ArgsOf("causal", "1K", {"--check", "--json"}));
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  CHECK(absl::StrContains(outcome.err, "times mean nothing"));
  REQUIRE(outcome.rows().size() == 1);
  CHECK(outcome.rows()[0]["oversubscribed"] == true);
}

TEST_CASE("what cannot be run is refused in one line, by one rank", "[ranks]") {
  struct Case {
    std::vector<std::string> more;
    const char* names;
  };
  const Case cases[] = {
      {{"--transport", "tcp"}, "--transport: \"tcp\"; expected mpi, ucx or nccl"},
      {{"--plan", "ring,circle"}, "--plan: \"circle\"; expected one of auto, ring, "},
      {{"--q-tokens", "2K"}, "q: 2048 tokens"},
      {{"--csv", "/nowhere/at/all.csv"}, "/nowhere/at/all.csv"},
      {{"--save-cluster", "/nowhere/at/all.json"}, "/nowhere/at/all.json"},
      {{"--save-cluster", TheFolder() / "cluster.json"}, "the file of --cluster"},
      {{"--backend", "abacus"}, "abacus"},
      {{"--nonsense"}, "--nonsense"},
  };
  for (const Case& c : cases) {
    // The first under mpirun, since a job takes its time; the others are the same code.
    const bool job = &c == &cases[0];
    const std::vector<std::string> args = ArgsOf("causal", "1K", c.more);
    const Outcome outcome = job ? RunRanks(3, args) : Run("", args);
    INFO(outcome.err);
    CHECK(outcome.code == 2);
    CHECK(outcome.out == "");
    // Open MPI 5 lets no one silence what its launcher adds about the job.
    const std::vector<std::string> lines = absl::StrSplit(outcome.err, '\n', absl::SkipEmpty());
    const auto is_ours = [](const std::string& line) {
      return absl::StartsWith(line, "annulus_bench: ");
    };
    CHECK(std::count_if(lines.begin(), lines.end(), is_ours) == 1);
    CHECK((job || lines.size() == 1));
    CHECK(absl::StrContains(outcome.err, c.names));
  }
}

TEST_CASE("help, and the kernels behind the same program", "[ranks]") {
  const Outcome help = Run("", {"--help"});
  CHECK(help.code == 0);
  CHECK(absl::StrContains(help.out, "--transport"));
  const Outcome kernels = Run("", {"--kernels", "--help"});
  CHECK(kernels.code == 0);
  CHECK(absl::StrContains(kernels.out, "--peer"));
  const Outcome none = Run("", {"--kernels", "--only", "nothing_here"});
  CHECK(none.code == 2);
  CHECK(none.out == "");
  CHECK(absl::StrContains(none.err, R"(--only: "nothing_here"; expected part of one of )"
                                    "prefill-causal-8k, "));
  CHECK(std::count(none.err.begin(), none.err.end(), '\n') == 1);
}

TEST_CASE("a kernel without a peer has an empty field for it", "[ranks]") {
  const std::string csv = TheFolder() / "kernels.csv";
  const Outcome outcome =
      Run("", {"--kernels", "--only", "prefill-partial-16k", "--repeat", "1", "--csv", csv});
  INFO(outcome.err);
  REQUIRE(outcome.code == 0);
  const std::vector<std::string> lines = absl::StrSplit(ReadAll(csv), '\n', absl::SkipEmpty());
  REQUIRE(lines.size() == 3);  // f32, bf16
  CHECK(absl::StrContains(lines[0], ",pct_of_peak,peer,peer_name,over_peer,max_rel_err,"));
  CHECK(absl::EndsWith(lines[0], ",beside,over_beside"));
  for (const size_t i : {1, 2}) {
    CAPTURE(lines[i]);
    CHECK(absl::StrContains(lines[i], ",,,,"));
    CHECK(absl::EndsWith(lines[i], ",,"));
  }
}

}  // namespace
}  // namespace annulus
