// One shape of attention on one GPU: its time by device events, with a cold L2, beside the copy
// bandwidth of the same process, and its error against float64. One JSON line; bench/gpu/gpu.py
// runs it beside its peers. With --steps: decode steps in process, a line for each case.
#include <algorithm>
#include <chrono>
#include <iostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "attention/cuda/choosing.h"
#include "attention/cuda/cuda_backend.h"
#include "attention/cuda/kernels.h"
#include "attention/cuda/launch.h"
#include "base/status.h"
#include "bench/gpu/device_problem.h"
#include "bench/gpu/fill.h"
#include "bench/gpu/steps.h"
#include "nlohmann/json.hpp"

namespace annulus {
namespace {

using cuda::DeviceRoom;
using cuda::Event;
using cuda::StatusOf;
using cuda::Stream;

// Of runs before those that count: clocks rise under work, and settle under the power cap only
// after some hundred milliseconds.
constexpr double kWarmUpMs = 1000;
constexpr int kCalls = 7;
constexpr size_t kFlushBytes = size_t{256} << 20;

struct Flags {
  GpuShape shape;
  std::string dtype = "bf16";
  int repeat = 20;
  int check = 16;
  std::string kernels;
  bool flush_reads = false;
  bool steps = false;
  int step_rounds = 500;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Timer {
 public:
  absl::Status Make() {
    ANNULUS_ASSIGN_OR_RETURN(begin_, cuda::MakeEvent(/*timed=*/true));
    ANNULUS_ASSIGN_OR_RETURN(end_, cuda::MakeEvent(/*timed=*/true));
    return absl::OkStatus();
  }
  void Start(cudaStream_t stream) { cudaEventRecord(begin_.get(), stream); }
  void End(cudaStream_t stream) { cudaEventRecord(end_.get(), stream); }
  absl::StatusOr<double> Stop(cudaStream_t stream) {  // milliseconds
    End(stream);
    return Read();
  }
  absl::StatusOr<double> Read() {
    ANNULUS_RETURN_IF_ERROR(StatusOf(cudaEventSynchronize(end_.get()), "cudaEventSynchronize"));
    float ms = 0;
    cudaEventElapsedTime(&ms, begin_.get(), end_.get());
    return ms;
  }

 private:
  Event begin_, end_;
};

// Bytes read and written by a copy on the device, 10^9 a second.
absl::StatusOr<double> CopyBandwidth(cudaStream_t stream, Timer& timer) {
  constexpr size_t kBytes = size_t{1} << 31;
  DeviceRoom from, to;
  ANNULUS_RETURN_IF_ERROR(from.Reserve(kBytes));
  ANNULUS_RETURN_IF_ERROR(to.Reserve(kBytes));
  std::vector<double> times;
  for (int i = 0; i < 8; ++i) {
    timer.Start(stream);
    cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, stream);
    ANNULUS_ASSIGN_OR_RETURN(const double ms, timer.Stop(stream));
    if (i >= 2) times.push_back(ms);
  }
  return 2.0 * kBytes / Median(times) / 1e6;
}

// Milliseconds of a call as the backend's callers have it: lists are made and uploaded within it.
absl::StatusOr<double> TimeCalls(Backend& backend, DeviceProblem& problem, cudaStream_t stream) {
  std::vector<double> calls;
  for (int i = 0; i < kCalls; ++i) {
    ANNULUS_RETURN_IF_ERROR(problem.Reset(stream));
    ANNULUS_RETURN_IF_ERROR(StatusOf(cudaStreamSynchronize(stream), "cudaStreamSynchronize"));
    const auto begin = std::chrono::steady_clock::now();
    ANNULUS_RETURN_IF_ERROR(backend.AttendBatch(problem.batch()));
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    calls.push_back(took.count());
  }
  return Median(calls);
}

// Milliseconds of a batch's kernels; `cold`: each time with none of its memory in the L2.
absl::StatusOr<double> TimeKernels(DeviceProblem& problem, const Flags& flags, bool cold,
                                   Timer& timer, cudaStream_t stream) {
  cudaDeviceProp properties;
  ANNULUS_RETURN_IF_ERROR(StatusOf(cudaGetDeviceProperties(&properties, 0), "the GPU"));
  ANNULUS_ASSIGN_OR_RETURN(const cuda::LoadedKernels kernels,
                           cuda::LoadKernels(properties, flags.kernels));
  cuda::WorkList list;
  list.Make(problem.batch(), kernels.slots);
  cuda::Upload upload;
  ANNULUS_RETURN_IF_ERROR(upload.Place(problem.batch(), list));
  ANNULUS_RETURN_IF_ERROR(upload.Fill(problem.batch(), list, stream));
  DeviceRoom flush;
  ANNULUS_RETURN_IF_ERROR(flush.Reserve(kFlushBytes));
  cudaMemsetAsync(flush.data(), 0, kFlushBytes, stream);
  std::vector<double> times;
  double warm_ms = 0;
  while (std::ssize(times) < flags.repeat) {
    ANNULUS_RETURN_IF_ERROR(problem.Reset(stream));
    if (cold && flags.flush_reads) {
      ANNULUS_RETURN_IF_ERROR(
          StatusOf(ReadZeros(flush.data(), kFlushBytes, stream), "reading what fills the L2"));
    } else if (cold) {
      cudaMemsetAsync(flush.data(), 1, kFlushBytes, stream);
    }
    timer.Start(stream);
    ANNULUS_RETURN_IF_ERROR(cuda::LaunchAll(list, upload, stream));
    ANNULUS_ASSIGN_OR_RETURN(const double ms, timer.Stop(stream));
    if (warm_ms >= kWarmUpMs) times.push_back(ms);
    warm_ms += ms;
  }
  return Median(times);
}

// Of a problem whose rows are put together by what they see, as it is chosen on the device or comes
// with the call.
struct ChosenTimes {
  double ms = 0;
  double choose_ms = 0;  // of it: means, scores and choices, or the list on its way
};
absl::StatusOr<ChosenTimes> TimeChosen(DeviceProblem& problem, const Flags& flags, Timer& timer,
                                       cudaStream_t stream) {
  const AttendArgs& args = problem.batch()[0];
  const Selector* word = cuda::ChosenBy(args);
  cuda::Choosing choosing;
  ANNULUS_RETURN_IF_ERROR(word != nullptr ? choosing.Place(args, *word, nullptr)
                                          : choosing.Place(args, *cuda::GatheredBy(args), nullptr));
  Timer first;
  ANNULUS_RETURN_IF_ERROR(first.Make());
  DeviceRoom flush;
  ANNULUS_RETURN_IF_ERROR(flush.Reserve(kFlushBytes));
  std::vector<double> times, choose_times;
  double warm_ms = 0;
  while (std::ssize(times) < flags.repeat) {
    ANNULUS_RETURN_IF_ERROR(problem.Reset(stream));
    cudaMemsetAsync(flush.data(), 1, kFlushBytes, stream);
    timer.Start(stream);
    first.Start(stream);
    ANNULUS_RETURN_IF_ERROR(choosing.StartChoosing(args, stream));
    first.End(stream);
    ANNULUS_RETURN_IF_ERROR(choosing.StartAttending(args, stream));
    ANNULUS_ASSIGN_OR_RETURN(const double ms, timer.Stop(stream));
    ANNULUS_ASSIGN_OR_RETURN(const double choose_ms, first.Read());
    ANNULUS_RETURN_IF_ERROR(choosing.Finish(args, stream));
    if (warm_ms >= kWarmUpMs) {
      times.push_back(ms);
      choose_times.push_back(choose_ms);
    }
    warm_ms += ms;
  }
  return ChosenTimes{Median(times), Median(choose_times)};
}

absl::Status Run(const Flags& flags) {
  GpuShape shape = flags.shape;
  ANNULUS_ASSIGN_OR_RETURN(shape.dtype, ParseDType(flags.dtype));
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                           MakeCudaBackend(0, flags.kernels));
  ANNULUS_ASSIGN_OR_RETURN(const Stream owned, cuda::MakeStream());
  cudaStream_t stream = owned.get();
  Timer timer;
  ANNULUS_RETURN_IF_ERROR(timer.Make());
  ANNULUS_ASSIGN_OR_RETURN(const double copy, CopyBandwidth(stream, timer));
  ANNULUS_ASSIGN_OR_RETURN(const auto problem, DeviceProblem::Make(shape));

  ChosenTimes times;
  const AttendArgs& first = problem->batch()[0];
  if (cuda::ChosenBy(first) != nullptr || cuda::GatheredBy(first) != nullptr) {
    ANNULUS_ASSIGN_OR_RETURN(times, TimeChosen(*problem, flags, timer, stream));
  } else {
    ANNULUS_ASSIGN_OR_RETURN(times.ms, TimeKernels(*problem, flags, /*cold=*/true, timer, stream));
  }
  const double ms = times.ms;
  ANNULUS_ASSIGN_OR_RETURN(const double call_ms, TimeCalls(*backend, *problem, stream));
  ANNULUS_ASSIGN_OR_RETURN(const DeviceProblem::Errors errors, problem->Check(flags.check));

  std::cout << nlohmann::ordered_json({{"device", backend->capabilities().detail},
                                       {"tokens", shape.tokens},
                                       {"q_tokens", shape.q_tokens},
                                       {"contexts", shape.contexts},
                                       {"ragged", shape.ragged},
                                       {"scattered", shape.scattered},
                                       {"heads", shape.heads},
                                       {"kv_heads", shape.kv_heads},
                                       {"head_dim", shape.head_dim},
                                       {"v_head_dim", shape.v_head_dim},
                                       {"pattern", shape.pattern},
                                       {"listed", shape.listed},
                                       {"outliers", shape.outliers},
                                       {"dtype", flags.dtype},
                                       {"visited_pairs", problem->visited_pairs()},
                                       {"work_pairs", problem->work_pairs()},
                                       {"ms", ms},
                                       {"choose_ms", times.choose_ms},
                                       {"call_ms", call_ms},
                                       {"tflops", problem->flops() / ms / 1e9},
                                       {"gb_per_s", problem->kv_bytes() / ms / 1e6},
                                       {"copy_gb_per_s", copy},
                                       {"max_rel_err", errors.out},
                                       {"max_lse_err", errors.lse}})
                   .dump()
            << std::endl;
  return absl::OkStatus();
}

// Decode steps in process over the GPU, beside the kernels alone and beside a step over the CPU
// that has next to nothing to compute.
absl::Status RunSteps(const Flags& flags) {
  struct Case {
    int contexts;
    int64_t tokens;
  };
  ANNULUS_ASSIGN_OR_RETURN(const Stream stream, cuda::MakeStream());
  Timer timer;
  ANNULUS_RETURN_IF_ERROR(timer.Make());
  for (const Case& one :
       {Case{1, 1 << 10}, Case{1, 1 << 14}, Case{1, 1 << 17}, Case{64, 1 << 10}}) {
    GpuShape shape;
    shape.tokens = one.tokens;
    shape.q_tokens = 1;
    shape.contexts = one.contexts;
    double kernel_us = 0;
    {
      ANNULUS_ASSIGN_OR_RETURN(const auto problem, DeviceProblem::Make(shape));
      ANNULUS_ASSIGN_OR_RETURN(kernel_us,
                               TimeKernels(*problem, flags, /*cold=*/false, timer, stream.get()));
      kernel_us *= 1e3;
    }
    for (const bool append : {false, true}) {
      StepShape steps;
      steps.tokens = one.tokens;
      steps.contexts = one.contexts;
      steps.append = append;
      ANNULUS_ASSIGN_OR_RETURN(const StepTimes gpu, TimeSteps(steps, "cuda", flags.step_rounds));
      steps.tokens = kBlockTokens;
      ANNULUS_ASSIGN_OR_RETURN(const StepTimes cpu, TimeSteps(steps, "cpu", flags.step_rounds));
      std::cout << nlohmann::ordered_json({{"tokens", one.tokens},
                                           {"contexts", one.contexts},
                                           {"append", append},
                                           {"p50_us", gpu.p50_us},
                                           {"p99_us", gpu.p99_us},
                                           {"kernel_us", kernel_us},
                                           {"cpu_step_us", cpu.p50_us},
                                           {"beside_us", gpu.p50_us - kernel_us - cpu.p50_us}})
                       .dump()
                << std::endl;
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace annulus

int main(int argc, char** argv) {
  annulus::Flags flags;
  annulus::GpuShape& shape = flags.shape;
  CLI::App app("Times attention of one shape on one GPU.");
  app.add_option("--tokens", shape.tokens, "of each context")->check(CLI::PositiveNumber);
  app.add_option("--q-tokens", shape.q_tokens, "queries, the last of each context")
      ->check(CLI::PositiveNumber);
  app.add_option("--contexts", shape.contexts)->check(CLI::PositiveNumber);
  app.add_flag("--ragged", shape.ragged, "lengths 1 : 2 : 3 : … of the same total");
  app.add_flag("--outliers", shape.outliers,
               "one channel and some rows are larger than the others");
  app.add_flag("--scattered", shape.scattered, "pages lie anywhere in memory");
  app.add_option("--listed", shape.listed,
                 "what list(x) in the pattern shows each block of queries: what another pattern "
                 "does, a 'tenth' of what is causal, or so many blocks; 'queries:N' each query");
  app.add_option("--heads", shape.heads)->check(CLI::PositiveNumber);
  app.add_option("--kv-heads", shape.kv_heads)->check(CLI::PositiveNumber);
  app.add_option("--head-dim", shape.head_dim)->check(CLI::PositiveNumber);
  app.add_option("--v-head-dim", shape.v_head_dim)->check(CLI::PositiveNumber);
  app.add_flag("--latent", shape.latent, "values are the first dims of the keys");
  app.add_option("--pattern", shape.pattern);
  app.add_option("--dtype", flags.dtype, "f32, f16 or bf16");
  app.add_option("--repeat", flags.repeat)->check(CLI::PositiveNumber);
  app.add_option("--kernels", flags.kernels, "only of this family, e.g. sm_80");
  app.add_flag("--flush-reads", flags.flush_reads,
               "fill the L2 with what is read instead of written: nothing is left to write back");
  app.add_option("--check", flags.check, "rows compared with float64");
  app.add_flag("--steps", flags.steps, "decode steps in process instead");
  app.add_option("--step-rounds", flags.step_rounds)->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = flags.steps ? annulus::RunSteps(flags) : annulus::Run(flags);
  if (status.ok()) return 0;
  std::cerr << "annulus_gpu_bench: " << status.message() << std::endl;
  return 1;
}
