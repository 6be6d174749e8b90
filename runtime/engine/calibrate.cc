#include "runtime/engine/calibrate.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "annulus/buffer.h"
#include "annulus/tensor.h"
#include "attention/kv_view.h"
#include "attention/memory_space.h"
#include "base/status.h"
#include "comm/local/local_exchange.h"
#include "runtime/engine/random_tensor.h"
#include "sharding/planner.h"

namespace annulus {
namespace {

constexpr int kHeadDim = 128;
// Each figure is the best of this many runs: what else the machine does meanwhile only slows them.
constexpr int kRuns = 6;

template <typename Fn>
absl::StatusOr<double> BestSeconds(Fn fn) {
  double best = std::numeric_limits<double>::infinity();
  for (int run = 0; run < kRuns; ++run) {
    const absl::Time begin = absl::Now();
    ANNULUS_RETURN_IF_ERROR(fn());
    best = std::min(best, absl::ToDoubleSeconds(absl::Now() - begin));
  }
  return best;
}

// Random [tokens, heads, kHeadDim] where the backend computes.
struct Input {
  Buffer bytes;
  TensorView view;
};
absl::StatusOr<Input> MakeInput(Rng& rng, MemorySpace& space, DType dtype, int64_t tokens,
                                int heads) {
  const Tensor host = RandomTensor(rng, dtype, tokens, heads, kHeadDim);
  Input input;
  ANNULUS_ASSIGN_OR_RETURN(input.bytes,
                           MovedTo(space, Buffer::Copy(host.data(), host.size_bytes())));
  input.view = TensorView::Contiguous(input.bytes.data(), dtype, tokens, heads, kHeadDim);
  return input;
}

// Seconds of causal attention of the last `q_tokens` of `kv_tokens`, `heads` heads each with a KV
// head of its own.
absl::StatusOr<double> AttendSeconds(Backend& backend, DType dtype, int64_t q_tokens,
                                     int64_t kv_tokens, int heads) {
  Rng rng(1);
  MemorySpace& space = backend.memory();
  ANNULUS_ASSIGN_OR_RETURN(const Input q, MakeInput(rng, space, dtype, q_tokens, heads));
  ANNULUS_ASSIGN_OR_RETURN(const Input k, MakeInput(rng, space, dtype, kv_tokens, heads));
  ANNULUS_ASSIGN_OR_RETURN(const Input v, MakeInput(rng, space, dtype, kv_tokens, heads));
  KvTable table = KvTable::FromTensors(k.view, v.view);
  table.set_memory(space.kind());
  ANNULUS_ASSIGN_OR_RETURN(const Pattern pattern, Pattern::Parse("causal", heads));
  const BlockSet keys = BlockSet::Range(0, BlocksOf(kv_tokens));
  ANNULUS_ASSIGN_OR_RETURN(const PartialBuffer partial,
                           MakePartial(space, q_tokens, heads, kHeadDim));
  AttendArgs args;
  args.q = q.view;
  args.q_ranges = {{kv_tokens - q_tokens, kv_tokens}};
  args.heads = {0, heads};
  args.kv_tokens = kv_tokens;
  args.kv = &table;
  args.pattern = &pattern;
  args.keys = &keys;
  args.into = partial.view;
  args.memory = space.kind();
  return BestSeconds([&] { return backend.Attend(args); });
}

bool OnGpu(Backend& backend) {
  return backend.memory().kind() == MemoryKind::kDevice;
}

absl::StatusOr<double> MeasureFlops(Backend& backend, DType dtype) {
  // As much work as fills what computes; f32 is slow on a GPU.
  const int64_t tokens = !OnGpu(backend) ? 1024 : dtype == DType::kF32 ? 2048 : 8192;
  const int heads = OnGpu(backend) ? 16 : 4;
  const int64_t blocks = tokens / kBlockTokens;
  const int64_t pairs = heads * blocks * (blocks + 1) / 2 * kBlockTokens * kBlockTokens;
  ANNULUS_ASSIGN_OR_RETURN(const double seconds,
                           AttendSeconds(backend, dtype, tokens, tokens, heads));
  return 2.0 * static_cast<double>(pairs) * (2 * kHeadDim) / seconds;
}

absl::StatusOr<double> MeasureRead(Backend& backend) {
  // 128 MiB, more than caches hold, or 1 GiB.
  const int64_t tokens = OnGpu(backend) ? 2048 * 1024 : 256 * 1024;
  ANNULUS_ASSIGN_OR_RETURN(const double seconds,
                           AttendSeconds(backend, DType::kBF16, 1, tokens, 1));
  return static_cast<double>(tokens * 2 * kHeadDim * SizeOf(DType::kBF16)) / seconds;
}

// Seconds in which every rank gives the next one so many bytes, as this one sees it. `space`: where
// they lie before and after.
absl::StatusOr<double> Pass(Exchange& exchange, MemorySpace& space, size_t bytes) {
  const int next = (exchange.rank() + 1) % exchange.world();
  const int previous = (exchange.rank() + exchange.world() - 1) % exchange.world();
  MemorySpace& wire = exchange.capabilities().memory == MemoryKind::kHost ? HostMemory() : space;
  const bool staged = wire.kind() != space.kind();
  Buffer mine;
  if (staged) {
    ANNULUS_ASSIGN_OR_RETURN(mine, space.AllocateZeroed(bytes));
  }
  ANNULUS_ASSIGN_OR_RETURN(Buffer out, wire.AllocateZeroed(bytes));
  ANNULUS_ASSIGN_OR_RETURN(Buffer in, wire.AllocateZeroed(bytes));
  return BestSeconds([&]() -> absl::Status {
    if (staged) ANNULUS_RETURN_IF_ERROR(space.CopyOut(mine.data(), out.data(), bytes));
    const SendOp send{next, out.data(), bytes};
    const RecvOp receive{previous, in.data(), bytes};
    ANNULUS_ASSIGN_OR_RETURN(const Exchange::Ticket ticket,
                             exchange.Post({&send, 1}, {&receive, 1}));
    const absl::Status done = exchange.Wait(ticket, absl::Now() + absl::Seconds(10));
    if (!done.ok()) {
      exchange.Abort(done);  // before its memory is given back
      return done;
    }
    return staged ? space.CopyIn(in.data(), mine.data(), bytes) : absl::OkStatus();
  });
}

absl::StatusOr<double> SwapSeconds(MemorySpace& space, size_t bytes) {
  const std::vector<std::unique_ptr<Exchange>> ranks = MakeLocalExchanges(2);
  absl::StatusOr<double> other;
  std::thread peer([&] { other = Pass(*ranks[1], space, bytes); });
  const absl::StatusOr<double> mine = Pass(*ranks[0], space, bytes);
  peer.join();
  ANNULUS_RETURN_IF_ERROR(other.status());
  ANNULUS_RETURN_IF_ERROR(mine.status());
  return std::max(*mine, *other);
}

void SetLinks(double latency_s, double bytes_per_s, ClusterModel* machine) {
  machine->inside_latency_s = machine->between_latency_s = latency_s;
  machine->inside_bytes_per_s = machine->between_bytes_per_s = bytes_per_s;
}

}  // namespace

absl::StatusOr<ClusterModel> MeasureMachine(Backend& backend) {
  constexpr size_t kBytes = size_t{16} << 20;
  ClusterModel machine;
  ANNULUS_ASSIGN_OR_RETURN(machine.flops, MeasureFlops(backend, DType::kBF16));
  ANNULUS_ASSIGN_OR_RETURN(machine.flops_f32, MeasureFlops(backend, DType::kF32));
  ANNULUS_ASSIGN_OR_RETURN(machine.read_bytes_per_s, MeasureRead(backend));
  ANNULUS_ASSIGN_OR_RETURN(machine.launch_s, AttendSeconds(backend, DType::kBF16, 1, 1, 1));
  MemorySpace& space = backend.memory();
  ANNULUS_ASSIGN_OR_RETURN(const double latency_s, SwapSeconds(space, 8));
  ANNULUS_ASSIGN_OR_RETURN(const double swap_s, SwapSeconds(space, kBytes));
  SetLinks(latency_s, 2.0 * kBytes / std::max(swap_s - latency_s, swap_s / 2), &machine);
  return machine;
}

absl::StatusOr<ClusterModel> MeasureLinks(ClusterModel machine, Exchange& exchange,
                                          MemorySpace& space) {
  // So much that agreeing on it, some hundred µs that vary, does not count.
  constexpr size_t kBytes = size_t{1} << 30;
  if (exchange.world() < 2) return machine;
  ANNULUS_ASSIGN_OR_RETURN(const double latency_s, Pass(exchange, space, 8));
  ANNULUS_ASSIGN_OR_RETURN(const double pass_s, Pass(exchange, space, kBytes));
  SetLinks(latency_s, kBytes / std::max(pass_s - latency_s, pass_s / 2), &machine);
  return machine;
}

}  // namespace annulus
