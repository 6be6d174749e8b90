#include "runtime/engine/calibrate.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "attention/kv_view.h"
#include "attention/partial.h"
#include "attention/tensor.h"
#include "base/buffer.h"
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

// Seconds of causal attention of the last `q_tokens` of `kv_tokens`, `heads` heads each with a KV
// head of its own.
absl::StatusOr<double> AttendSeconds(Backend& backend, DType dtype, int64_t q_tokens,
                                     int64_t kv_tokens, int heads) {
  Rng rng(1);
  const Tensor q = RandomTensor(rng, dtype, q_tokens, heads, kHeadDim);
  const Tensor k = RandomTensor(rng, dtype, kv_tokens, heads, kHeadDim);
  const Tensor v = RandomTensor(rng, dtype, kv_tokens, heads, kHeadDim);
  const KvTable table = KvTable::FromTensors(k, v);
  ANNULUS_ASSIGN_OR_RETURN(const Pattern pattern, Pattern::Parse("causal", heads));
  const BlockSet keys = BlockSet::Range(0, BlocksOf(kv_tokens));
  Partial partial(q_tokens, heads, kHeadDim);
  AttendArgs args;
  args.q = q;
  args.q_ranges = {{kv_tokens - q_tokens, kv_tokens}};
  args.heads = {0, heads};
  args.kv_tokens = kv_tokens;
  args.kv = &table;
  args.pattern = &pattern;
  args.keys = &keys;
  args.into = partial.view();
  return BestSeconds([&] { return backend.Attend(args); });
}

absl::StatusOr<double> MeasureFlops(Backend& backend, DType dtype) {
  constexpr int64_t kTokens = 1024;
  constexpr int kHeads = 4;
  constexpr int64_t kBlocks = kTokens / kBlockTokens;
  constexpr int64_t kPairs = kHeads * kBlocks * (kBlocks + 1) / 2 * kBlockTokens * kBlockTokens;
  ANNULUS_ASSIGN_OR_RETURN(const double seconds,
                           AttendSeconds(backend, dtype, kTokens, kTokens, kHeads));
  return 2.0 * kPairs * (2 * kHeadDim) / seconds;
}

absl::StatusOr<double> MeasureRead(Backend& backend) {
  constexpr int64_t kTokens = 256 * 1024;  // 128 MiB: more than caches hold
  ANNULUS_ASSIGN_OR_RETURN(const double seconds,
                           AttendSeconds(backend, DType::kBF16, 1, kTokens, 1));
  return static_cast<double>(kTokens * 2 * kHeadDim * SizeOf(DType::kBF16)) / seconds;
}

// Seconds in which each of two ranks gives the other so many bytes.
absl::StatusOr<double> SwapSeconds(size_t bytes) {
  const std::vector<std::unique_ptr<Exchange>> ranks = MakeLocalExchanges(2);
  const auto swap = [bytes](Exchange& exchange) -> absl::StatusOr<double> {
    const int peer = 1 - exchange.rank();
    Buffer out(bytes), in(bytes);
    std::memset(out.data(), 1, bytes);
    return BestSeconds([&]() -> absl::Status {
      const SendOp send{peer, out.data(), bytes};
      const RecvOp receive{peer, in.data(), bytes};
      ANNULUS_ASSIGN_OR_RETURN(const Exchange::Ticket ticket,
                               exchange.Post({&send, 1}, {&receive, 1}));
      return exchange.Wait(ticket, absl::Now() + absl::Seconds(10));
    });
  };
  absl::StatusOr<double> other;
  std::thread peer([&] { other = swap(*ranks[1]); });
  absl::StatusOr<double> mine = swap(*ranks[0]);
  peer.join();
  ANNULUS_RETURN_IF_ERROR(other.status());
  ANNULUS_RETURN_IF_ERROR(mine.status());
  return std::max(*mine, *other);
}

}  // namespace

absl::StatusOr<ClusterModel> MeasureMachine(Backend& backend) {
  constexpr size_t kBytes = size_t{16} << 20;
  ClusterModel machine;
  ANNULUS_ASSIGN_OR_RETURN(machine.flops, MeasureFlops(backend, DType::kBF16));
  ANNULUS_ASSIGN_OR_RETURN(machine.flops_f32, MeasureFlops(backend, DType::kF32));
  ANNULUS_ASSIGN_OR_RETURN(machine.read_bytes_per_s, MeasureRead(backend));
  ANNULUS_ASSIGN_OR_RETURN(machine.launch_s, AttendSeconds(backend, DType::kBF16, 1, 1, 1));
  ANNULUS_ASSIGN_OR_RETURN(machine.inside_latency_s, SwapSeconds(8));
  ANNULUS_ASSIGN_OR_RETURN(const double swap_s, SwapSeconds(kBytes));
  machine.inside_bytes_per_s =
      2.0 * kBytes / std::max(swap_s - machine.inside_latency_s, swap_s / 2);
  machine.between_bytes_per_s = machine.inside_bytes_per_s;
  machine.between_latency_s = machine.inside_latency_s;
  return machine;
}

}  // namespace annulus
