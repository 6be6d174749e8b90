// annulus_service_bench: what a call of the service costs beside the bare parts it is made of, all
// measured in the same run, and how much of the kernel's rate a batch of decode steps keeps.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/lock_order.h"
#include "base/memory.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "base/write_file.h"
#include "bench/kernels/kernel_case.h"
#include "bench/report/columns.h"
#include "bench/service/beside.h"
#include "bench/service/cluster.h"
#include "bench/service/compress.h"
#include "bench/service/parts.h"
#include "bench/service/security.h"
#include "bench/service/select.h"
#include "bench/service/spread.h"
#include "bench/service/upload.h"
#include "comm/ucx/ucx_signals.h"
#include "runtime/cli/options/options.h"
#include "runtime/cli/options/shared_options.h"

namespace annulus {
namespace {

struct Flags {
  int rounds = 1000, batch = 64, spread = 0;
  int64_t batch_tokens = 2048, select_tokens = 0, compress_tokens = 0;
  int64_t upload_bytes = int64_t{256} << 20, beside_tokens = 32 << 10;
  std::string endpoint, csv, beside_csv;
  bool security = false, json = false;
};

// Bare parts of a call, p50 in seconds.
struct Parts {
  double grpc_s = 0;  // 0: none
  double ucx_s = 0;
  double kernel_s = 0;
  double wake_s = 0;  // of threads, beyond the wake-ups within the others

  double sum_s() const { return grpc_s + ucx_s + kernel_s + wake_s; }
};

class Report {
 public:
  explicit Report(bool json) : json_(json) {
    if (json) return;
    std::cout << absl::StrFormat("%-28s %8s %8s | %8s %8s %8s %8s %8s | %6s\n", "call, us", "p50",
                                 "p99", "gRPC", "UCX", "kernel", "wake", "sum", "p50/sum");
  }

  void Add(const std::string& name, const Samples& samples, const Parts& parts) {
    Add(name, samples, parts, samples.p50() / parts.sum_s());
  }
  // `ratio` where it is not that of the p50s.
  void Add(const std::string& name, const Samples& samples, const Parts& parts, double ratio) {
    if (!json_) {
      std::cout << absl::StrFormat("%-28s %8.0f %8.0f | %8.0f %8.0f %8.0f %8.0f %8.0f | %6.2f\n",
                                   name, samples.p50() * 1e6, samples.p99() * 1e6,
                                   parts.grpc_s * 1e6, parts.ucx_s * 1e6, parts.kernel_s * 1e6,
                                   parts.wake_s * 1e6, parts.sum_s() * 1e6, ratio)
                << std::flush;
    }
    Put({{"case", name},
         {"p50_us", samples.p50() * 1e6},
         {"p99_us", samples.p99() * 1e6},
         {"grpc_us", parts.grpc_s * 1e6},
         {"ucx_us", parts.ucx_s * 1e6},
         {"kernel_us", parts.kernel_s * 1e6},
         {"wake_us", parts.wake_s * 1e6},
         {"sum_us", parts.sum_s() * 1e6},
         {"ratio", ratio}});
  }

  const std::string& csv() const { return csv_; }

 private:
  void Put(const Columns& columns) {
    if (json_) std::cout << columns.JsonLine() << std::flush;
    csv_ += (csv_.empty() ? columns.CsvHeader() : "") + columns.CsvLine();
  }

  const bool json_;
  std::string csv_;
};

// The kernel alone on the queries of `contexts` contexts.
class Kernel {
 public:
  static absl::StatusOr<std::unique_ptr<Kernel>> Create(const ServiceShape& shape) {
    ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, MakeBackend("cpu", 0));
    return std::unique_ptr<Kernel>(new Kernel(shape, std::move(backend)));
  }
  void Run() { case_.Run(backend_.get()); }

 private:
  Kernel(const ServiceShape& shape, std::unique_ptr<Backend> backend)
      : backend_(std::move(backend)), case_(ShapeOf(shape), &pool_) {}
  static KernelShape ShapeOf(const ServiceShape& shape) {
    KernelShape kernel;
    kernel.dtype = shape.dtype;
    kernel.contexts.assign(static_cast<size_t>(shape.contexts), shape.tokens);
    kernel.heads = shape.heads;
    kernel.kv_heads = shape.kv_heads;
    kernel.dim = shape.dim;
    return kernel;
  }

  ThreadPool pool_{0};
  const std::unique_ptr<Backend> backend_;
  KernelCase case_;
};

// What a call is made of: each part alone, and once more all of them one inside the other, as
// threads of a call wait for one another. What that takes beyond the parts is their waking up: they
// have slept for longer than in their own echoes.
class BareCall {
 public:
  enum class Grpc { kNone, kUnary, kStream };

  static absl::StatusOr<std::unique_ptr<BareCall>> Start(Grpc grpc, const CallBytes& bytes,
                                                         const ServiceShape& shape) {
    auto call = std::make_unique<BareCall>();
    ANNULUS_ASSIGN_OR_RETURN(call->kernel_, Kernel::Create(shape));
    ANNULUS_ASSIGN_OR_RETURN(call->ucx_, UcxEcho::Start(bytes));
    // Of their own, or what ran last would find its data in a cache.
    ANNULUS_ASSIGN_OR_RETURN(call->inner_kernel_, Kernel::Create(shape));
    ANNULUS_ASSIGN_OR_RETURN(
        call->inner_ucx_,
        UcxEcho::Start(bytes, [kernel = call->inner_kernel_.get()] { kernel->Run(); }));
    if (grpc == Grpc::kNone) return call;
    const bool stream = grpc == Grpc::kStream;
    ANNULUS_ASSIGN_OR_RETURN(call->grpc_, GrpcEcho::Start(bytes, stream));
    ANNULUS_ASSIGN_OR_RETURN(call->outer_grpc_, GrpcEcho::Start(bytes, stream, [call = call.get()] {
                               call->Note(call->inner_ucx_->Call());
                             }));
    return call;
  }

  void RunGrpc() { Note(grpc_ == nullptr || grpc_->Call()); }
  void RunUcx() { Note(ucx_->Call()); }
  void RunKernel() { kernel_->Run(); }
  void RunAll() { Note(outer_grpc_ == nullptr ? inner_ucx_->Call() : outer_grpc_->Call()); }

  bool has_grpc() const { return grpc_ != nullptr; }
  bool echoed() const { return echoed_; }  // all went well

 private:
  void Note(bool echoed) {
    if (!echoed) echoed_ = false;
  }

  std::atomic<bool> echoed_ = true;
  std::unique_ptr<Kernel> kernel_;
  std::unique_ptr<Kernel> inner_kernel_;
  std::unique_ptr<UcxEcho> ucx_;
  std::unique_ptr<UcxEcho> inner_ucx_;
  std::unique_ptr<GrpcEcho> grpc_;
  std::unique_ptr<GrpcEcho> outer_grpc_;
};

// A call in turn with its parts.
absl::Status Measure(const char* name, int rounds, BareCall& bare,
                     const std::function<absl::Status()>& call, Report* report) {
  absl::Status failed;
  const std::vector<Samples> samples = Samples::InTurn(
      rounds, {[&] { failed.Update(call()); }, [&] { bare.RunGrpc(); }, [&] { bare.RunUcx(); },
               [&] { bare.RunKernel(); }, [&] { bare.RunAll(); }});
  Parts parts{bare.has_grpc() ? samples[1].p50() : 0, samples[2].p50(), samples[3].p50()};
  parts.wake_s = samples[4].p50() - parts.sum_s();
  report->Add(name, samples[0], parts);
  if (!bare.echoed()) failed.Update(absl::InternalError("a bare echo failed"));
  return failed;
}

absl::Status MeasureLatencies(const Flags& flags, Report* report) {
  const ServiceShape shape;
  const CallBytes query{shape.q_bytes(), shape.reply_bytes()};
  const CallBytes append{shape.q_bytes() + shape.kv_bytes(), shape.reply_bytes()};
  // A context that every call makes longer has so many tokens halfway through.
  ServiceShape grown = shape;
  grown.tokens += Samples::kWarmUps + flags.rounds / 2;
  using Grpc = BareCall::Grpc;
  ANNULUS_ASSIGN_OR_RETURN(const auto unary, BareCall::Start(Grpc::kUnary, query, shape));
  ANNULUS_ASSIGN_OR_RETURN(const auto inside, BareCall::Start(Grpc::kNone, query, shape));
  ANNULUS_ASSIGN_OR_RETURN(const auto stream, BareCall::Start(Grpc::kStream, query, shape));
  ANNULUS_ASSIGN_OR_RETURN(const auto longer, BareCall::Start(Grpc::kStream, append, grown));
  ANNULUS_ASSIGN_OR_RETURN(const auto cluster, ServiceCluster::Start(shape));
  Client& client = cluster->client();
  Service& service = cluster->service();
  const auto first = [](const std::vector<absl::StatusOr<StepResult>>& results) {
    return results[0].status();
  };
  const auto measure = [&](const char* name, BareCall& bare,
                           const std::function<absl::Status()>& call) {
    return Measure(name, flags.rounds, bare, call, report);
  };
  ANNULUS_RETURN_IF_ERROR(measure("Attend, client", *unary,
                                  [&] { return client.Attend(cluster->Attend(0)).status(); }));
  ANNULUS_RETURN_IF_ERROR(measure("Attend, coordinator", *inside,
                                  [&] { return service.Call(cluster->Attend(0), {}).status(); }));
  ANNULUS_RETURN_IF_ERROR(measure("Step, query, client", *stream,
                                  [&] { return first(client.Step({cluster->Query(0)})); }));
  ANNULUS_RETURN_IF_ERROR(measure("Step, query, coordinator", *inside, [&] {
    const StepRequest step = cluster->Query(0);
    return first(StepResultsOf(service.Call(StepsRequest{{&step, 1}}, {}), 1));
  }));
  return measure("Step, append, client", *longer,
                 [&] { return first(client.Step({cluster->AppendAndQuery(0)})); });
}

absl::Status MeasureBatch(const Flags& flags, int64_t tokens, Report* report) {
  constexpr int kBatchWarmUps = 10;
  ServiceShape shape;
  shape.contexts = flags.batch;
  shape.tokens = tokens;
  const int rounds = std::max(20, flags.rounds / 20);
  // The contexts grow with every batch.
  ServiceShape grown = shape;
  grown.tokens += kBatchWarmUps + rounds / 2;
  ANNULUS_ASSIGN_OR_RETURN(const auto kernel, Kernel::Create(grown));
  ANNULUS_ASSIGN_OR_RETURN(const auto cluster, ServiceCluster::Start(shape));
  absl::Status failed;
  const auto step = [&] {
    std::vector<StepRequest> batch;
    for (int i = 0; i < flags.batch; ++i) batch.push_back(cluster->AppendAndQuery(i));
    for (const auto& result : cluster->client().Step(batch)) failed.Update(result.status());
  };
  const std::vector<Samples> samples =
      Samples::InTurn(rounds, {step, [&] { kernel->Run(); }}, kBatchWarmUps);
  report->Add(absl::StrCat("Step, batch, ", tokens, " tokens each"), samples[0],
              {.kernel_s = samples[1].p50()}, samples[0].MedianBeside(samples[1]));
  return failed;
}

// The bar is 60% of what a bare stream of the same chunks reaches: p50/sum of at most 1.67.
absl::Status ShowUploads(const Flags& flags, Report* report) {
  if (flags.upload_bytes == 0) return absl::OkStatus();
  const int rounds = std::max(3, flags.rounds / 200);
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<ServiceCluster> cluster,
                           ServiceCluster::Start({}));
  ANNULUS_ASSIGN_OR_RETURN(
      const std::unique_ptr<Client> relay,
      Client::Connect({.endpoint = cluster->endpoint(), .upload = Upload::kRelay}));
  ANNULUS_ASSIGN_OR_RETURN(
      const std::vector<Samples> samples,
      MeasureUploads({&cluster->client(), relay.get()}, flags.upload_bytes, rounds));
  const double bare_s = samples[0].p50();
  report->Add("Upload, direct", samples[1], {.grpc_s = bare_s});
  report->Add("Upload, relay", samples[2], {.grpc_s = bare_s});
  const double gigabytes = static_cast<double>(flags.upload_bytes) / 1e9;
  std::cerr << absl::StrFormat(
      "upload of %d bytes, GB/s: direct %.2f, relay %.2f, gRPC alone %.2f\n", flags.upload_bytes,
      gigabytes / samples[1].p50(), gigabytes / samples[2].p50(), gigabytes / bare_s);
  return absl::OkStatus();
}

Columns BesideColumns(int64_t tokens, const BesideResult& result) {
  return {{"prefill_tokens", tokens},
          {"alone_p50_us", result.alone.p50() * 1e6},
          {"alone_p99_us", result.alone.p99() * 1e6},
          {"beside_p50_us", result.beside.p50() * 1e6},
          {"beside_p99_us", result.beside.p99() * 1e6},
          {"p99_ratio", result.p99_ratio()},
          {"prefill_alone_s", result.prefill_alone_s},
          {"prefill_beside_s", result.prefill_beside_s},
          {"steps_share", result.steps_share},
          {"prefill_ratio", result.prefill_ratio()}};
}

// Bars: p99 beside of at most 2 times that alone, a prefill of at most 1.15 times what it would be
// on the cores that are left, no context with less than 0.7 of its share.
absl::Status MeasureTogether(const Flags& flags) {
  if (flags.beside_tokens == 0) return absl::OkStatus();
  std::unique_ptr<ServiceCluster> cluster;
  std::unique_ptr<Client> remote;
  if (flags.endpoint.empty()) {
    ANNULUS_ASSIGN_OR_RETURN(cluster, ServiceCluster::Start({.contexts = 0, .workers = 2}));
  } else {
    ANNULUS_ASSIGN_OR_RETURN(remote, Client::Connect({.endpoint = flags.endpoint}));
  }
  Client& client = remote != nullptr ? *remote : cluster->client();
  if (!flags.json) {
    std::cout << absl::StrFormat("%-28s %8s %8s %8s %8s %6s | %8s %8s %6s %6s\n",
                                 "steps beside prefills", "p50, us", "p99", "beside", "p99",
                                 "ratio", "alone, s", "beside", "steps'", "ratio");
  }
  std::string csv;
  for (const int64_t tokens : {flags.beside_tokens, 4 * flags.beside_tokens}) {
    BesideShape shape;
    shape.prefill_tokens = tokens;
    for (int round = 0; round < 3; ++round) {
      ANNULUS_ASSIGN_OR_RETURN(const BesideResult result, MeasureBeside(client, shape));
      const Columns columns = BesideColumns(tokens, result);
      csv += (csv.empty() ? columns.CsvHeader() : "") + columns.CsvLine();
      if (flags.json) {
        std::cout << columns.JsonLine() << std::flush;
        continue;
      }
      std::cout << absl::StrFormat(
                       "%-28s %8.0f %8.0f %8.0f %8.0f %6.2f | %8.3f %8.3f %6.2f %6.2f\n",
                       absl::StrCat("prefill over ", tokens), result.alone.p50() * 1e6,
                       result.alone.p99() * 1e6, result.beside.p50() * 1e6,
                       result.beside.p99() * 1e6, result.p99_ratio(), result.prefill_alone_s,
                       result.prefill_beside_s, result.steps_share, result.prefill_ratio())
                << std::flush;
    }
  }
  BesideShape shape;
  shape.prefill_tokens = flags.beside_tokens;
  constexpr int kPrefills = 8;
  ANNULUS_ASSIGN_OR_RETURN(std::vector<double> shares,
                           MeasureShares(client, shape, kPrefills, absl::Seconds(20)));
  const double least = *std::min_element(shares.begin(), shares.end());
  if (flags.json) {
    std::cout << Columns({{"prefills", int64_t{kPrefills}}, {"least_share", least}}).JsonLine();
  } else {
    std::cout << absl::StrFormat(
        "%d prefills of as many contexts: the least has %.2f of its share\n", kPrefills, least);
  }
  return flags.beside_csv.empty() ? absl::OkStatus() : WriteFile(flags.beside_csv, {csv});
}

absl::Status Run(const std::vector<std::string>& args) {
  Flags flags;
  Options options("", "Latencies of the service beside their bare parts.", "annulus_service_bench");
  options.Add("rounds", "N", "calls of each kind that count (1000)",
              SetCount(&flags.rounds, 10, 1'000'000));
  options.Add("batch", "N", "contexts of the decode batch (64)", SetCount(&flags.batch, 1, 1024));
  options.Add("batch-tokens", "N", "tokens of each of them, and in a second batch 4N (2048)",
              SetCount(&flags.batch_tokens, 1, 1 << 18));
  options.Add("upload-bytes", "N", "KV that an upload brings, 0: no uploads (256M)",
              SetCount(&flags.upload_bytes, 0, int64_t{2} << 30));
  options.Add("beside-tokens", "N", "tokens of prefills beside steps, and then 4N; 0: none (32K)",
              SetCount(&flags.beside_tokens, 0, int64_t{1} << 24));
  options.Add("spread", "N", "only steps over N workers", SetCount(&flags.spread, 1, 64));
  options.Add("endpoint", "HOST:PORT", "only that, of a service there", SetText(&flags.endpoint));
  options.Add("select-tokens", "N", "only decode over chosen keys, of a context of N tokens",
              SetCount(&flags.select_tokens, 0, int64_t{1} << 24));
  options.Add("compress-tokens", "N", "only decode over compressed contexts, of N tokens",
              SetCount(&flags.compress_tokens, 0, int64_t{1} << 24));
  options.AddFlag("security", "only what tokens and TLS cost", &flags.security);
  options.Add("csv", "F", "where the rows go as CSV", SetText(&flags.csv));
  options.Add("beside-csv", "F", "where the rows of steps beside prefills go as CSV",
              SetText(&flags.beside_csv));
  options.AddFlag("json", "a JSON line per row on stdout, no table", &flags.json);
  const Environment environment = [](const std::string& name) { return std::getenv(name.c_str()); };
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help, options.Parse(args, environment));
  if (help.has_value()) {
    std::cout << *help;
    return absl::OkStatus();
  }
  for (const std::string& file : {flags.csv, flags.beside_csv}) {
    if (!file.empty()) ANNULUS_RETURN_IF_ERROR(CheckWritable(file));
  }
  KeepFreedMemory(KeptBytes(ServiceCluster::kKvBytesLimit));  // as a worker's process does
  if (!flags.endpoint.empty()) return MeasureTogether(flags);
  for (const int contexts : {1, 8, 64}) {
    if (flags.spread == 0) break;
    ANNULUS_ASSIGN_OR_RETURN(auto row, MeasureSpread(flags.spread, contexts, flags.rounds));
    std::cout << row.JsonLine() << std::flush;
  }
  if (flags.spread != 0) return absl::OkStatus();
  if (flags.select_tokens != 0) return ShowSelect(flags.select_tokens, flags.json, flags.csv);
  if (flags.compress_tokens != 0) return ShowCompress(flags.compress_tokens, flags.json, flags.csv);
  if (flags.security) return MeasureSecurity(flags.rounds, flags.upload_bytes);
  Report report(flags.json);
  ANNULUS_RETURN_IF_ERROR(MeasureLatencies(flags, &report));
  for (const int64_t tokens : {flags.batch_tokens, 4 * flags.batch_tokens}) {
    ANNULUS_RETURN_IF_ERROR(MeasureBatch(flags, tokens, &report));
  }
  ANNULUS_RETURN_IF_ERROR(ShowUploads(flags, &report));
  ANNULUS_RETURN_IF_ERROR(MeasureTogether(flags));
  return flags.csv.empty() ? absl::OkStatus() : WriteFile(flags.csv, {report.csv()});
}

}  // namespace
}  // namespace annulus

ANNULUS_HOLD_SIGNALS_EARLY;

int main(int argc, char** argv) {
  annulus::GiveBackSignals();
  annulus::ForgetLockOrder();  // as the program does
  const absl::Status status = annulus::Run(std::vector<std::string>(argv + 1, argv + argc));
  if (status.ok()) return 0;
  std::cerr << "annulus_service_bench: " << status.message() << std::endl;
  return absl::IsInvalidArgument(status) ? 2 : 1;
}
