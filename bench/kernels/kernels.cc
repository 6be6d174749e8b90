#include "bench/kernels/kernels.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "attention/backend.h"
#include "attention/cpu/machine_peaks.h"
#include "base/quoted.h"
#include "base/thread_pool.h"
#include "base/write_file.h"
#include "bench/kernels/cases.h"
#include "bench/kernels/kernel_case.h"
#include "bench/kernels/peer.h"
#include "hwy/targets.h"

namespace annulus {
namespace {

struct Options {
  int threads = 0;
  int repeat = 9;
  std::string only;
  std::string target;
  std::string peer;
  std::string csv;
};

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// What is measured of one case: medians, and medians of the ratios of figures taken in turn.
struct Figures {
  double ours = 0;  // FLOP/s or bytes/s
  double peak = 0;
  double of_peak = 0;
  double peer = 0;  // 0: none was measured, nor over_peer
  double over_peer = 0;
  double over_beside = 0;  // 0: nothing is
  double error = 0;
};

// A field of CSV, empty where nothing was measured.
std::string Measured(double value, int digits) {
  return value > 0 ? absl::StrFormat("%.*g", digits, value) : "";
}

class Bench {
 public:
  explicit Bench(Options options)
      : options_(std::move(options)),
        backend_(*MakeBackend("cpu", options_.threads)),
        pool_(options_.threads) {}

  int Run();

 private:
  void StartPeer();
  bool Fits(const KernelShape& shape) const;
  double Peak(const KernelCase& c);
  Figures Measure(const BenchCase& what, KernelCase* c);
  void Print(const BenchCase& what, const KernelCase& c, const Figures& figures);

  const Options options_;
  std::unique_ptr<Backend> backend_;
  ThreadPool pool_;
  std::unique_ptr<Peer> peer_;
  std::string csv_;
};

// The peak that bounds a case: of the dot product that its dtype takes, or of memory.
double Bench::Peak(const KernelCase& c) {
  if (c.shape().q_tokens == 1) return MeasureRead(&pool_, c.kv());
  const double dot = c.shape().dtype == DType::kBF16 ? MeasureBf16DotPeak(options_.threads) : 0;
  return dot > 0 ? dot : MeasureFmaPeak(options_.threads);
}

Figures Bench::Measure(const BenchCase& what, KernelCase* c) {
  const bool decode = c->shape().q_tokens == 1;
  const double work = decode ? c->read_bytes() : c->flop();
  bool with_peer = peer_ != nullptr && !what.peer_workload.empty();
  if (with_peer) {
    const absl::Status status = peer_->SetUp(what.peer_workload);
    with_peer = status.ok();
    if (!with_peer) {
      std::fprintf(stderr, "%s: no %s: %s\n", c->shape().name.c_str(), peer_->name().c_str(),
                   std::string(status.message()).c_str());
    }
  }
  std::optional<KernelCase> beside;
  if (what.beside.has_value()) beside.emplace(*what.beside, &pool_);
  std::vector<double> ours, peaks, of_peak, peers, over_peer, over_beside;
  c->Run(backend_.get());  // warm
  double before = Peak(*c);
  for (int i = 0; i < options_.repeat; ++i) {
    ours.push_back(work / c->Run(backend_.get()));
    const double after = Peak(*c);
    peaks.push_back((before + after) / 2);
    before = after;
    of_peak.push_back(ours.back() / peaks.back());
    if (beside.has_value()) over_beside.push_back(ours.back() * beside->Run(backend_.get()) / work);
    if (!with_peer) continue;
    const absl::StatusOr<double> seconds = peer_->Run();
    if (!seconds.ok()) break;
    peers.push_back(work / *seconds);
    over_peer.push_back(ours.back() / peers.back());
  }
  return {Median(ours),      Median(peaks),       Median(of_peak),      Median(peers),
          Median(over_peer), Median(over_beside), c->WorstError(&pool_)};
}

constexpr char kColumns[] =
    "kernel,pattern,dtype,contexts,tokens,q_tokens,heads,kv_heads,head_dim,density,target,threads,"
    "unit,ours,peak,pct_of_peak,peer,peer_name,over_peer,max_rel_err,beside,over_beside";

void Bench::Print(const BenchCase& what, const KernelCase& c, const Figures& f) {
  const KernelShape& shape = c.shape();
  const char* unit = shape.q_tokens == 1 ? "GB/s" : "GFLOP/s";
  const std::string peer =
      f.peer > 0 ? absl::StrFormat(", %.2fx %s (%.1f)", f.over_peer, peer_->name(), f.peer / 1e9)
                 : "";
  const std::string beside_name = what.beside.has_value() ? what.beside->name : "";
  const std::string beside =
      beside_name.empty() ? "" : absl::StrFormat(", %.2fx %s", f.over_beside, beside_name);
  std::printf("%-22s%-5s %3d/%-3d d%-4d%8.1f %-8s= %5.1f%% of %-6.1f error %.1e%s%s\n",
              shape.name.c_str(), std::string(Name(shape.dtype)).c_str(), shape.heads,
              shape.kv_heads, shape.dim, f.ours / 1e9, unit, 100 * f.of_peak, f.peak / 1e9, f.error,
              peer.c_str(), beside.c_str());
  std::fflush(stdout);
  const double pairs = static_cast<double>(shape.heads) * static_cast<double>(shape.q_tokens) *
                       static_cast<double>(shape.tokens());
  absl::StrAppendFormat(
      &csv_, "%s,\"%s\",%s,%d,%d,%d,%d,%d,%d,%.4g,%s,%d,%s,%.5g,%.5g,%.4g,%s,%s,%s,%.2g,%s,%s\n",
      shape.name, shape.pattern, Name(shape.dtype), shape.contexts.size(), shape.tokens(),
      shape.q_tokens, shape.heads, shape.kv_heads, shape.dim,
      static_cast<double>(c.pairs().visited) / pairs, backend_->capabilities().detail,
      pool_.threads(), unit, f.ours / 1e9, f.peak / 1e9, 100 * f.of_peak, Measured(f.peer / 1e9, 5),
      f.peer > 0 ? peer_->name() : "", Measured(f.over_peer, 4), f.error, beside_name,
      Measured(f.over_beside, 4));
}

// Half of the machine's memory at most: the peer holds as much.
bool Bench::Fits(const KernelShape& shape) const {
  const int64_t memory = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  if (shape.kv_bytes() <= memory / 2) return true;
  std::fprintf(stderr, "%s: skipped: its KV takes %.1f GB of this machine's %.1f\n",
               shape.name.c_str(), static_cast<double>(shape.kv_bytes()) / 1e9,
               static_cast<double>(memory) / 1e9);
  return false;
}

void Bench::StartPeer() {
  if (options_.peer.empty()) return;
  absl::StatusOr<std::unique_ptr<Peer>> peer =
      Peer::Start(absl::StrCat("exec ", options_.peer, " ", pool_.threads()));
  if (peer.ok()) peer_ = *std::move(peer);
  if (!peer.ok()) std::fprintf(stderr, "no peer: '%s' does not run\n", options_.peer.c_str());
}

// Which cases the options ask for. INVALID_ARGUMENT where there is none.
absl::StatusOr<std::vector<BenchCase>> Chosen(const std::string& only) {
  std::vector<BenchCase> chosen;
  std::vector<std::string> names;
  for (BenchCase& what : BenchCases()) {
    const std::string& name = what.shape.name;
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    if (absl::StrContains(name, only)) chosen.push_back(std::move(what));
  }
  if (!chosen.empty()) return chosen;
  return absl::InvalidArgumentError(absl::StrCat(
      "--only: ", Quoted(only), "; expected part of one of ", absl::StrJoin(names, ", ")));
}

int Bench::Run() {
  const absl::StatusOr<std::vector<BenchCase>> cases = Chosen(options_.only);
  if (!cases.ok()) {
    std::fprintf(stderr, "annulus_bench: %s\n", std::string(cases.status().message()).c_str());
    return 2;
  }
  const absl::Status writable =
      options_.csv.empty() ? absl::OkStatus() : CheckWritable(options_.csv);
  if (!writable.ok()) {
    std::fprintf(stderr, "annulus_bench: --csv: %s\n", std::string(writable.message()).c_str());
    return 2;
  }
  csv_ = absl::StrCat(kColumns, "\n");
  StartPeer();
  std::printf(
      "%s, %d threads; GFLOP = 4·visited pairs·d per query head, GB = K + V once; medians\n",
      backend_->capabilities().detail.c_str(), pool_.threads());
  for (const BenchCase& what : *cases) {
    if (!Fits(what.shape)) continue;
    KernelCase c(what.shape, &pool_);
    Print(what, c, Measure(what, &c));
    // A row is in the file at once: the program may be ended before its last one.
    const absl::Status written =
        options_.csv.empty() ? absl::OkStatus() : WriteFile(options_.csv, {csv_});
    if (written.ok()) continue;
    std::fprintf(stderr, "annulus_bench: --csv: %s\n", std::string(written.message()).c_str());
    return 1;
  }
  return 0;
}

// Restricts the kernels and the peaks to one instruction set, by Highway's name for it.
bool ChooseTarget(const std::string& name) {
  for (int64_t left = hwy::SupportedTargets(); left != 0; left &= left - 1) {
    const int64_t target = left & ~(left - 1);
    if (name != hwy::TargetName(target)) continue;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    return true;
  }
  return false;
}

}  // namespace

int RunKernels(int argc, char** argv) {
  Options options;
  CLI::App app("The CPU kernels beside this machine's peaks, and beside a peer");
  app.add_option("--only", options.only, "cases whose name contains this");
  app.add_option("--threads", options.threads, "0: one per core")->check(CLI::Range(0, 4096));
  app.add_option("--repeat", options.repeat, "runs of each case")->check(CLI::Range(1, 1000));
  app.add_option("--target", options.target, "an instruction set of this machine, as AVX2");
  app.add_option("--peer", options.peer, "a command; see bench/kernels/peer.h");
  app.add_option("--csv", options.csv, "a file to write");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    std::fprintf(stderr, "annulus_bench: %s\n", error.what());
    return 2;
  }
  if (!options.target.empty() && !ChooseTarget(options.target)) {
    std::fprintf(stderr, "--target: '%s'; expected an instruction set of this machine, as AVX2\n",
                 options.target.c_str());
    return 2;
  }
  return Bench(std::move(options)).Run();
}

}  // namespace annulus
