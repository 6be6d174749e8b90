#include "attention/cpu/cpu_backend.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <mutex>
#include <numbers>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/attend_args.h"
#include "attention/cpu/block_walk.h"
#include "attention/cpu/kernels.h"
#include "attention/cpu/key_gather.h"
#include "attention/cpu/row_gather.h"
#include "attention/cpu/tile_memory.h"
#include "attention/cpu/tile_plan.h"
#include "base/status.h"
#include "base/thread_pool.h"

namespace annulus {
namespace {

using cpu::BlockWalk;
using cpu::Kernel;
using cpu::KernelSet;
using cpu::KeyBlock;
using cpu::Segment;
using cpu::Tile;
using cpu::TileMemory;
using cpu::TilePlan;
using cpu::TileShape;

// What a thread works with; kept, so that a warm thread allocates nothing.
struct ThreadRoom {
  cpu::TileRoom tile;
  std::vector<float> row;
  std::vector<float> state;
  Buffer gathered;
  cpu::GatherRoom queries;

  // Room for a row of q or out.
  float* Row(int dim) { return cpu::AtLeast(static_cast<size_t>(dim), &row); }
  // Room for the result of a segment that is all of its tile.
  float* State(size_t floats) { return cpu::AtLeast(floats, &state); }
};

// What a call works with besides its arguments; kept, so that a warm backend allocates nothing.
struct Workspace {
  TilePlan plan;
  Buffer states;  // of segments whose tile has several
};

// Whether a row that saw keys came out as if their values were subnormal.
bool HasFlushedRow(const TileShape& shape, const cpu::SegmentState& state) {
  const float* out = state.out;
  for (int row = 0; row < shape.rows(); ++row, out += shape.v_head_dim) {
    if (!(state.sum[row] > 0)) continue;
    const auto counts = [](float value) { return std::fabs(value) >= cpu::kFlushedOut; };
    if (std::none_of(out, out + shape.v_head_dim, counts)) return true;
  }
  return false;
}

// One batch in flight: shared by the threads that take its segments.
class Call {
 public:
  // Of a call that is not urgent, `pool` lets urgent ones go first.
  Call(Workspace* workspace, ThreadPool* pool, bool urgent)
      : plan_(workspace->plan), states_(workspace->states), pool_(*pool), urgent_(urgent) {
    const size_t bytes = plan_.state_floats() * sizeof(float);
    if (states_.size() < bytes) states_ = Buffer(bytes);
  }

  // Runs one segment; gives its result to the caller's partial, or keeps it for MergeTile.
  void RunSegment(const Segment& segment);
  // Merges the segments of one tile, in their order, into the caller's partial.
  void MergeTile(const Tile& tile);

  absl::Status status() const { return status_; }
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }

 private:
  enum class End { kDone, kStopped, kFlushed };

  static End EndOf(const KernelSet& kernels, const TileShape& shape,
                   const cpu::SegmentState& state) {
    return kernels.takes != nullptr && HasFlushedRow(shape, state) ? End::kFlushed : End::kDone;
  }

  // One segment's result with these kernels, not to be used if they flushed what counts, or if the
  // batch was stopped.
  End Compute(const KernelSet& kernels, const Tile& tile, const Segment& segment,
              const cpu::SegmentState& into);
  void LoadQueries(const Kernel& kernel, const Tile& tile, const TileMemory& memory);
  bool AttendBlocks(const Kernel& kernel, const Tile& tile, const Segment& segment,
                    const TileMemory& memory);
  End ComputeGathered(const KernelSet& kernels, const Tile& tile, const Segment& segment,
                      const cpu::SegmentState& into);
  // attend(step, the keys of the next one or null) for each block of the segment, until it is
  // false. False: not all of them.
  template <typename Attend>
  bool ForEachBlock(const Tile& tile, const Segment& segment, const Attend& attend);
  // Merges one row, whose softmax state is max (log2 units), sum and out, which is overwritten.
  void Give(const Tile& tile, int row, float max, float sum, float* out);
  void Stop(absl::Status status);

  cpu::SegmentState State(const Segment& segment) {
    float* at = reinterpret_cast<float*>(states_.data()) + segment.state;
    return cpu::StateAt(at, plan_.tiles()[segment.tile].shape);
  }

  ThreadRoom& room() const { return rooms_[urgent_ ? 1 : 0]; }

  // A thread may turn to an urgent call in the midst of another one's segment.
  static thread_local std::array<ThreadRoom, 2> rooms_;

  const TilePlan& plan_;
  Buffer& states_;
  ThreadPool& pool_;
  const bool urgent_;
  std::atomic<bool> stopped_{false};
  std::mutex mutex_;
  absl::Status status_;  // the first failure
};

thread_local std::array<ThreadRoom, 2> Call::rooms_;

void Call::Stop(absl::Status status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  status_.Update(status);
  stopped_.store(true, std::memory_order_relaxed);
}

void Call::LoadQueries(const Kernel& kernel, const Tile& tile, const TileMemory& memory) {
  const TensorView& from = tile.args->q;
  float* q = room().Row(tile.shape.head_dim);
  for (int row = 0; row < tile.shape.rows(); ++row) {
    const std::byte* bytes =
        from.Row(tile.row_first + row / tile.shape.heads, tile.head_first + row % tile.shape.heads);
    Convert(bytes, from.dtype, q, DType::kF32, tile.shape.head_dim);
    kernel.set_query(tile.shape, memory, row, q);
  }
}

template <typename Attend>
bool Call::ForEachBlock(const Tile& tile, const Segment& segment, const Attend& attend) {
  BlockWalk walk(plan_, tile, segment);
  const BlockWalk::Step* next = walk.Next();
  while (next != nullptr) {
    const BlockWalk::Step& step = *next;
    next = walk.Next();
    if (!urgent_) pool_.GiveWay();
    if (stopped()) return false;
    if (IsCancelled(*tile.args)) {
      Stop(AttendCancelled());
      return false;
    }
    if (step.keys.k == nullptr || step.keys.v == nullptr) {
      Stop(MissingPage(tile.kv_head, step.block));
      return false;
    }
    if (!attend(step, next == nullptr ? nullptr : &next->keys)) return false;
  }
  return true;
}

bool Call::AttendBlocks(const Kernel& kernel, const Tile& tile, const Segment& segment,
                        const TileMemory& memory) {
  // Of one query, so many keys of a block cost less as copies. Rules have few cells that are seen
  // in part, but where tokens stand in another order, a query sees a key or two of each.
  const int few = tile.shape.tokens > 1           ? -1
                  : tile.pattern->lists().empty() ? cpu::kBlockKeys / 8
                                                  : cpu::kBlockKeys / 2;
  cpu::KeyGather gather(tile.shape, &room().gathered);
  const auto attend = [&](const BlockWalk::Step& step, const KeyBlock* next) {
    KeyBlock keys = step.keys;
    uint64_t masks[kBlockTokens];
    if (!step.full) {
      const TokenRange rows{tile.position, tile.position + tile.shape.tokens};
      tile.pattern->CellMask(tile.kv_head, rows, step.block, masks);
      keys.masks = masks + tile.position % kBlockTokens;
    }
    if (const uint64_t seen = cpu::KeyGather::Seen(keys); std::popcount(seen) <= few) {
      if (!gather.Fits(seen)) kernel.attend(tile.shape, memory, gather.Take(), nullptr);
      gather.Add(keys, seen);
    } else {
      kernel.attend(tile.shape, memory, keys, next);
    }
    return true;
  };
  if (!ForEachBlock(tile, segment, attend)) return false;
  if (!gather.empty()) kernel.attend(tile.shape, memory, gather.Take(), nullptr);
  return true;
}

void Call::Give(const Tile& tile, int row, float max, float sum, float* out) {
  if (sum == 0) return;  // no key was seen; a sum of NaN makes lse NaN
  const PartialView& into = tile.args->into;
  const int64_t dim = tile.shape.v_head_dim;
  const float share = 1 / sum;
  for (int64_t c = 0; c < dim; ++c) out[c] *= share;
  float lse = static_cast<float>((static_cast<double>(max) + std::log2(static_cast<double>(sum))) *
                                 std::numbers::ln2);
  const int64_t at = (tile.row_first + row / tile.shape.heads) * into.heads + tile.head_first +
                     row % tile.shape.heads;
  Merge({into.out + at * dim, into.lse + at, 1, 1, dim}, {out, &lse, 1, 1, dim});
}

Call::End Call::ComputeGathered(const KernelSet& kernels, const Tile& tile, const Segment& segment,
                                const cpu::SegmentState& into) {
  cpu::RowGather gather(kernels, tile, into, &room().queries);
  bool taken = true;
  const auto attend = [&](const BlockWalk::Step& step, const KeyBlock* next) {
    return taken = gather.Attend(step.block, step.keys, next);
  };
  if (!ForEachBlock(tile, segment, attend)) return taken ? End::kStopped : End::kFlushed;
  gather.Finish();
  return EndOf(kernels, tile.shape, into);
}

Call::End Call::Compute(const KernelSet& kernels, const Tile& tile, const Segment& segment,
                        const cpu::SegmentState& into) {
  if (tile.gathers) return ComputeGathered(kernels, tile, segment, into);
  const TileShape& shape = tile.shape;
  const bool few = shape.rows() <= kernels.stream_rows_max;
  const Kernel& kernel = few ? kernels.stream : kernels.panel;
  const cpu::TileFloats floats = kernel.floats(shape);
  const TileMemory memory = room().tile.Prepare(floats);
  LoadQueries(kernel, tile, memory);
  if (kernels.takes != nullptr && !kernels.takes(shape, floats, memory)) return End::kFlushed;
  if (!AttendBlocks(kernel, tile, segment, memory)) return End::kStopped;
  std::copy_n(memory.max, shape.rows(), into.max);
  std::copy_n(memory.sum, shape.rows(), into.sum);
  kernel.get_out(shape, memory, into.out);
  return EndOf(kernels, shape, into);
}

void Call::RunSegment(const Segment& segment) {
  if (stopped()) return;
  const Tile& tile = plan_.tiles()[segment.tile];
  const TileShape& shape = tile.shape;
  const bool whole = tile.segment_end - tile.segment_first == 1;
  const cpu::SegmentState state =
      whole ? cpu::StateAt(room().State(cpu::StateFloats(shape)), shape) : State(segment);
  End end = Compute(cpu::KernelsFor(tile.args->q.dtype, shape.kv_dtype), tile, segment, state);
  if (end == End::kFlushed) end = Compute(cpu::FmaKernels(), tile, segment, state);
  if (end == End::kStopped || !whole) return;
  float* out = state.out;
  for (int row = 0; row < shape.rows(); ++row, out += shape.v_head_dim) {
    Give(tile, row, state.max[row], state.sum[row], out);
  }
}

void Call::MergeTile(const Tile& tile) {
  const int rows = tile.shape.rows();
  const int dim = tile.shape.v_head_dim;
  float* merged = room().Row(dim);
  for (int row = 0; row < rows; ++row) {
    float max = cpu::kNoScore;
    for (size_t s = tile.segment_first; s < tile.segment_end; ++s) {
      max = std::max(max, State(plan_.segments()[s]).max[row]);
    }
    float sum = 0;
    std::fill_n(merged, dim, 0.0f);
    for (size_t s = tile.segment_first; s < tile.segment_end; ++s) {
      const cpu::SegmentState state = State(plan_.segments()[s]);
      const float weight = std::exp2(state.max[row] - max);
      const float* out = state.out + static_cast<ptrdiff_t>(row) * dim;
      sum += weight * state.sum[row];
      for (int c = 0; c < dim; ++c) merged[c] += weight * out[c];
    }
    Give(tile, row, max, sum, merged);
  }
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads) : pool_(threads) {
    capabilities_.name = "cpu";
    capabilities_.detail = cpu::FmaKernels().target;
    if (cpu::Bf16DotKernels() != nullptr) {
      absl::StrAppend(&capabilities_.detail, "+", cpu::Bf16DotKernels()->target);
    }
    capabilities_.dtypes = {DType::kF32, DType::kF16, DType::kBF16};
    capabilities_.head_dim_max = 576;
    capabilities_.head_dim_multiple = 8;
  }

  const BackendCapabilities& capabilities() const override { return capabilities_; }
  ThreadPool* pool() override { return &pool_; }

  absl::Status AttendBatch(absl::Span<const AttendArgs> batch) override {
    for (const AttendArgs& args : batch) {
      ANNULUS_RETURN_IF_ERROR(CheckAttendArgs(args, capabilities_));
    }
    std::unique_ptr<Workspace> workspace = TakeWorkspace();
    const absl::Status status = Run(batch, workspace.get());
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(workspace));
    return status;
  }

 private:
  std::unique_ptr<Workspace> TakeWorkspace() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.empty()) return std::make_unique<Workspace>();
    std::unique_ptr<Workspace> workspace = std::move(idle_.back());
    idle_.pop_back();
    return workspace;
  }

  absl::Status Run(absl::Span<const AttendArgs> batch, Workspace* workspace) {
    TilePlan& plan = workspace->plan;
    plan.Make(batch);
    // A problem that was given up has no tiles from then on.
    if (std::any_of(batch.begin(), batch.end(), IsCancelled)) return AttendCancelled();
    if (batch.empty()) return absl::OkStatus();
    const ThreadPool::Turn turn = batch.front().turn;
    Call call(workspace, &pool_, turn.urgent);
    const auto run = [&](int64_t i) {
      call.RunSegment(plan.segments()[plan.order()[static_cast<size_t>(i)]]);
    };
    pool_.ParallelFor(static_cast<int64_t>(plan.order().size()), run, turn);
    if (call.stopped()) return call.status();
    const auto merge = [&](int64_t i) {
      call.MergeTile(plan.tiles()[plan.split_tiles()[static_cast<size_t>(i)]]);
    };
    pool_.ParallelFor(static_cast<int64_t>(plan.split_tiles().size()), merge, turn);
    return absl::OkStatus();
  }

  ThreadPool pool_;
  BackendCapabilities capabilities_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> idle_;  // at most one per concurrent caller
};

}  // namespace

std::unique_ptr<Backend> MakeCpuBackend(int threads) {
  return std::make_unique<CpuBackend>(threads);
}

}  // namespace annulus
