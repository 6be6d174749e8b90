// What all kernels of the CUDA backend share: the walk over a tile's blocks, the end of a row.
#pragma once

#include <cstdint>

#include "attention/cuda/work.h"
#include "attention/merge_limit.h"

namespace annulus::cuda {

inline constexpr float kNoScore = -INFINITY;
// How often, in blocks, a thread block looks whether it should stop.
inline constexpr int kStopPeriod = 32;

// The merge may be launched while kernels before it run, and waits for their results by itself
// (PTX ISA, "griddepcontrol"): code of sm_90 alone, and that is looked at where it is launched.
__device__ inline void LetNextKernelStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void WaitForKernelBefore() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// One block of a tile, as its first kCount halves see it.
template <int kCount>
struct Cell {
  int block;
  int sees[kCount];  // kSeesAll, kSeesNone or a mask's id
};

// The blocks of one segment, one after the other. Trivial, so that it may lie in shared memory.
class Walk {
 public:
  // At a segment's Segment::run and run_at.
  __device__ void Begin(const Work& work, int run, int run_at) {
    run_ = work.runs + run;
    ids_ = work.ids;
    at_ = run_at;
  }

  __device__ int Block() const {
    return run_->step == 0 ? ids_[run_->first + at_] : run_->first + at_ * run_->step;
  }
  template <int kCount>
  __device__ Cell<kCount> Now() const {
    Cell<kCount> cell;
    cell.block = Block();
#pragma unroll
    for (int h = 0; h < kCount; ++h) {
      const int sees = run_->sees[h];
      cell.sees[h] = sees < 0 ? sees : ids_[sees + at_];
    }
    return cell;
  }
  // Goes on by so many blocks, which the segment must have.
  __device__ void Skip(int blocks) {
    at_ += blocks;
    for (; at_ >= run_->count; ++run_) at_ -= run_->count;
  }

 private:
  const Run* run_;
  const int32_t* ids_;
  int at_;
};

// The keys of a block that exist, as bits.
__device__ inline uint64_t ExistingKeys(const Problem& problem, int block) {
  const int64_t keys = problem.kv_tokens - int64_t{block} * kBlockKeys;
  return keys >= kBlockKeys ? ~uint64_t{0} : (uint64_t{1} << keys) - 1;
}

// What row `row` of the half sees of a cell.
__device__ inline uint64_t RowMask(const Work& work, const Half& half, int sees, int row,
                                   uint64_t existing) {
  if (sees == kSeesAll) return existing;
  if (sees == kSeesNone || row >= half.tokens * half.heads) return 0;
  return work.masks[int64_t{sees} * kBlockKeys + half.mask_row + row / half.heads] & existing;
}

__device__ inline const Page* PageAt(const Tile& tile, const Problem& problem, int block) {
  return &problem.pages[int64_t{block} * problem.kv_heads + tile.kv_head];
}

__device__ inline void ReportMissing(Report* report, int problem, int kv_head, int block) {
  if (atomicCAS(&report->missing, 0, 1) != 0) return;
  report->kv_head = kv_head;
  report->problem = problem;
  report->block = block;
}
__device__ inline void ReportMissing(const Work& work, const Tile& tile, int block) {
  ReportMissing(work.report, tile.problem, tile.kv_head, block);
}

// Where the row of a half lies in out (in rows of v_head_dim) and in lse.
__device__ inline int64_t PlaceOf(const Problem& problem, const Half& half, int row) {
  return int64_t{half.row_first + row / half.heads} * problem.heads + half.head_first +
         row % half.heads;
}

// How a row ends: weights of what is there and of what comes, whose softmax state is max (log2
// units) and sum, out not divided by the sum. Merging as Merge() of attention/partial.h. A sum of
// NaN, from scores that overflowed or are NaN, makes the row's lse NaN. What is not there is not
// read, and what did not come not written: a weight of 0 keeps values that are not finite.
struct RowEnd {
  bool has_old;
  bool has_new;
  float old_weight;
  float new_weight;
  float lse;
};

__device__ inline RowEnd EndOf(float old_lse, float max, float sum) {
  constexpr float kLn2 = 0.693147180559945309f;
  if (sum == 0) return {true, false, 1, 0, old_lse};
  const float lse = (max + log2f(sum)) * kLn2;
  if (old_lse == kNoScore) return {false, true, 0, 1 / sum, lse};
  const float top = fmaxf(old_lse, lse);
  const float a = expf(old_lse - top);
  const float b = expf(lse - top);
  if (fminf(a, b) * fabsf(top) > kMergeLseMax) return {true, true, 0, 0, NAN};
  return {true, true, a / (a + b), b / (a + b) / sum, top + logf(a + b)};
}

}  // namespace annulus::cuda
