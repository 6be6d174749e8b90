// `annulus demo`, the main job: a million-token context over a local cluster of processes, with
// planted associations that must be found where the pattern shows them and answers that must agree
// with the float64 oracle.
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/backend.h"
#include "base/quoted.h"
#include "base/status.h"
#include "base/write_file.h"
#include "runtime/cli/commands.h"
#include "runtime/cli/demo/phases.h"
#include "runtime/cli/demo/probe.h"
#include "runtime/cli/process.h"
#include "runtime/cli/report/progress.h"
#include "runtime/context/layout.h"
#include "runtime/telemetry/trace.h"
#include "sharding/picture.h"
#include "sharding/planner.h"

namespace annulus {
namespace {

constexpr char kS2[] = "s2(64,16,4)";  // a stride of 4 over 4 KV heads: together they see all
constexpr int kDemoWorkersMax = 64;
constexpr int64_t kDemoTokensMax = int64_t{1} << 30;
constexpr absl::Duration kStartTimeout = absl::Minutes(2);
constexpr absl::Duration kStopTimeout = absl::Seconds(20);
// A process that waits for a core, on a machine that does other work too, is not gone. One that
// ends is missed at once all the same.
constexpr char kSilenceMs[] = "30000";

struct DemoOptions {
  int64_t tokens = 1 << 20;
  int workers = 4;
  std::string backend = "auto";
  std::string out_dir = "annulus-demo";  // made if it is not there; files in it are replaced
  int64_t seed = 1;
  bool json = false;
};

// A cluster of this program's own processes: `annulus up` as a child.
class Cluster {
 public:
  // Returns once all workers have joined.
  absl::Status Start(int workers, const std::string& backend) {
    ANNULUS_ASSIGN_OR_RETURN(
        up_, Child::Start({"up", "--workers", absl::StrCat(workers), "--backend", backend,
                           "--heartbeat-timeout-ms", kSilenceMs, "--log-level", "error"}));
    ANNULUS_ASSIGN_OR_RETURN(const std::string line, up_->ReadLine(absl::Now() + kStartTimeout));
    endpoint_ = std::string(absl::StripPrefix(line, "ready "));
    return absl::OkStatus();
  }

  // Ends it and waits; by force if that takes too long.
  ~Cluster() {
    if (up_ == nullptr) return;
    up_->Terminate();
    const absl::Time deadline = absl::Now() + kStopTimeout;
    while (up_->Reap().empty() && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(10));
  }

  const std::string& endpoint() const { return endpoint_; }

 private:
  std::unique_ptr<Child> up_;
  std::string endpoint_;
};

absl::Status MakeOutDir(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error && std::filesystem::is_directory(path)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--out-dir ", QuotedEnd(path),
                                                 " cannot be made: ", error.message(),
                                                 "; expected a folder to write to"));
}

// The chunk's plan, as the service makes it.
absl::Status DrawBlockMap(const ContextSpec& spec, int64_t tokens, int workers,
                          const Pattern& pattern, const std::string& path) {
  const Problem problem = ProblemOf(spec, LayoutOf(spec, workers, tokens), DemoChunk(tokens),
                                    tokens, {0, tokens}, pattern);
  ANNULUS_ASSIGN_OR_RETURN(const Plan plan, BuildPlan(PlanKind::kGroupCast, problem));
  return WriteFile(path, {BlockMapSvg(plan, Cost(plan, ClusterModel{}), SizeOf(problem))});
}

// Says what goes on, on a line of its own.
void Say(const Console& console, absl::string_view what) {
  *console.err << "demo: " << what << std::endl;
}

absl::Status RunPhases(const DemoOptions& options, const Console& console, Client* client,
                       Backend* backend, DemoReport* report) {
  const DemoData data(report->seed, options.tokens);
  ANNULUS_ASSIGN_OR_RETURN(const Pattern causal, Pattern::Parse("causal", kDemoKvHeads));
  ANNULUS_ASSIGN_OR_RETURN(const Pattern s2, Pattern::Parse(kS2, kDemoKvHeads));
  report->covered = Coverage(s2, {data.tokens() - 1, data.tokens()}, data.tokens()).covered;

  const ContextSpec spec = DemoContext(data.tokens(), options.workers);
  ANNULUS_ASSIGN_OR_RETURN(const ContextInfo context, client->CreateContext(spec));
  DemoPhases phases(client, context.id, &data, backend, report);
  {
    Progress progress(console, "upload");
    ANNULUS_RETURN_IF_ERROR(
        phases.Upload([&](int64_t done, int64_t all) { progress.Show(done, all); }));
  }
  Say(console, absl::StrFormat("uploaded %d tokens, %d bytes of KV, in %.1f s", data.tokens(),
                               report->kv_bytes, report->upload_s));

  std::vector<TraceSpan> trace;
  Say(console, absl::StrCat("a chunk of ", DemoChunk(data.tokens()).size(), " queries under ", kS2,
                            " over two plans"));
  ANNULUS_RETURN_IF_ERROR(phases.RunChunk(s2, &trace));
  for (const Pattern* pattern : {&causal, &s2}) {
    Say(console, absl::StrCat(kDemoAssociations, " decode steps under ", pattern->text()));
    ANNULUS_RETURN_IF_ERROR(phases.RunDecode(*pattern));
  }
  Say(console, "comparing a sample of the answers with the float64 oracle");
  ANNULUS_RETURN_IF_ERROR(phases.CompareSample());
  ANNULUS_RETURN_IF_ERROR(client->Release(context.id));

  ANNULUS_RETURN_IF_ERROR(WriteTrace(report->trace_path, trace));
  return DrawBlockMap(spec, data.tokens(), options.workers, s2, report->block_map_path);
}

// INTERNAL, after the report, if anything is not as it must be.
absl::Status RunDemo(const DemoOptions& options, const Console& console) {
  const absl::Time begin = absl::Now();
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, MakeBackend(options.backend, 1));
  ANNULUS_RETURN_IF_ERROR(MakeOutDir(options.out_dir));
  DemoReport report;
  report.tokens = options.tokens;
  report.workers = options.workers;
  report.gpus = GpusOf(*backend, options.workers);
  report.seed = static_cast<uint64_t>(options.seed);
  report.block_map_path = options.out_dir + "/block-map.svg";
  report.trace_path = options.out_dir + "/trace.json";
  ANNULUS_RETURN_IF_ERROR(CheckOutputs(
      {{"the block map", report.block_map_path}, {"the trace", report.trace_path}}, {}));

  Say(console, absl::StrCat("starting a coordinator and ", options.workers, " workers"));
  Cluster cluster;
  ANNULUS_RETURN_IF_ERROR(cluster.Start(options.workers, options.backend));
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client,
                           Client::Connect({.endpoint = cluster.endpoint()}));
  ANNULUS_ASSIGN_OR_RETURN(const ClusterStatus status, client->Status());
  if (!status.workers.empty()) report.backend = status.workers[0].backend;
  ANNULUS_RETURN_IF_ERROR(RunPhases(options, console, client.get(), backend.get(), &report));

  report.elapsed_s = absl::ToDoubleSeconds(absl::Now() - begin);
  Judge(&report);
  if (options.json) {
    *console.out << ToJson(report) << std::flush;
  } else {
    *console.err << ToText(report) << std::flush;
  }
  if (report.failures.empty()) return absl::OkStatus();
  return absl::InternalError(absl::StrJoin(report.failures, "; "));
}

}  // namespace

absl::Status RunDemo(const Arguments& args, const Console& console) {
  DemoOptions demo;
  Options options("demo", "The main job: a long context over a cluster of processes, checked.");
  options.Add("tokens", "N", "tokens of the context (1M)",
              SetCount(&demo.tokens, kDemoAssociations, kDemoTokensMax));
  options.Add("workers", "W", "worker processes (4)", SetCount(&demo.workers, 1, kDemoWorkersMax));
  options.Add("backend", "auto|cpu|cuda|reference", "what the workers compute with (auto)",
              SetText(&demo.backend));
  options.Add("out-dir", "D", "where block-map.svg and trace.json go (annulus-demo)",
              SetText(&demo.out_dir));
  options.Add("seed", "S", "of the context's content (1)",
              SetCount(&demo.seed, 0, int64_t{1} << 62));
  options.AddFlag("json", "one JSON line on stdout", &demo.json);
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help,
                           options.Parse(args, console.environment));
  if (help.has_value()) {
    *console.out << *help;
    return absl::OkStatus();
  }
  return RunDemo(demo, console);
}

}  // namespace annulus
