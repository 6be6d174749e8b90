// Where the rows go that chose units (choose.h): each unit's entries and tiles, and the merge of a
// row's slots. Entries of a unit come in any order: what a slot holds does not depend on it.
#include <algorithm>

#include "attention/cuda/choose.h"
#include "attention/cuda/device.cuh"

namespace annulus::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kOffsetThreads = 1024;

// Inclusive sums over a thread block of kOffsetThreads.
__device__ inline int2 SumUpTo(int2 mine) {
  __shared__ int2 warps[kOffsetThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int x = __shfl_up_sync(~0u, mine.x, distance), y = __shfl_up_sync(~0u, mine.y, distance);
    if (lane >= distance) mine = {mine.x + x, mine.y + y};
  }
  if (lane == 31) warps[warp] = mine;
  __syncthreads();
  for (int w = 0; w < warp; ++w) mine = {mine.x + warps[w].x, mine.y + warps[w].y};
  return mine;
}

// One thread block: each thread does the same number of units, one after the other.
__global__ void __launch_bounds__(kOffsetThreads) Offsets(const Chosen chosen, int32_t* counts) {
  const int lists = chosen.kv_heads * chosen.units;
  const int each = (lists + kOffsetThreads - 1) / kOffsetThreads;
  const int first = min(lists, static_cast<int>(threadIdx.x) * each);
  const int end = min(lists, first + each);
  int2 mine = {0, 0};  // entries, tiles
  for (int i = first; i < end; ++i) {
    mine = {mine.x + counts[i], mine.y + (counts[i] + kChosenRows - 1) / kChosenRows};
  }
  const int2 up_to = SumUpTo(mine);
  int entry = up_to.x - mine.x, tile = up_to.y - mine.y;
  if (threadIdx.x == kOffsetThreads - 1) *chosen.tile_count = up_to.y;
  for (int i = first; i < end; ++i) {
    const int count = counts[i];
    counts[i] = entry;
    for (int at = 0; at < count; at += kChosenRows) {
      chosen.tiles[tile++] = {i, entry + at, min(kChosenRows, count - at)};
    }
    entry += count;
  }
}

// A thread does a row: its list is its own unit, last, and others before.
__global__ void __launch_bounds__(kThreads)
    TakeLists(const Chosen chosen, const ChosenLists lists) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= chosen.rows) return;
  const int length = chosen.picks - 1, head = blockIdx.y;
  const int64_t* begin = lists.begin + (lists.head_first + head) * lists.rows + lists.row_first;
  const int64_t first = begin[row], last = begin[row + 1] - 1;
  for (int i = 0; i < length; ++i) {
    const int unit = first + i < last ? lists.keys[first + i] : -1;
    chosen.best[(int64_t{head} * chosen.rows + row) * length + i] = {0, unit};
  }
}

// Calls fn(unit, its row of the chunk, head, pick) for the picks of the thread block's rows, those
// of all heads of a KV head.
template <typename Fn>
__device__ inline void ForEachPick(const Chosen& chosen, int first_row, int rows, Fn&& fn) {
  const int length = chosen.picks - 1, begin = static_cast<int>(blockIdx.x) * kThreads;
  const int picks = min(kThreads, rows - begin) * length;  // of a head
  for (int h = 0; h < chosen.group; ++h) {
    const int head = static_cast<int>(blockIdx.y) * chosen.group + h;
    const int64_t at = (int64_t{head} * chosen.rows + first_row + begin) * length;
    for (int i = threadIdx.x; i < picks; i += kThreads) {
      fn(chosen.best[at + i].y, begin + i / length, head, i % length);
    }
  }
}

// Counts the rows that see each unit, or, kFill, gives each its entry. What a thread block has of a
// unit goes to memory at once: there many rows would wait for one another.
template <bool kFill>
__global__ void __launch_bounds__(kThreads)
    Tally(const Chosen chosen, int first_row, int rows, int32_t* counts) {
  __shared__ int32_t own[kChosenUnitsMax];
  counts += int64_t{blockIdx.y} * chosen.units;
  for (int unit = threadIdx.x; unit < chosen.units; unit += kThreads) own[unit] = 0;
  __syncthreads();
  ForEachPick(chosen, first_row, rows, [&](int unit, int, int, int) {
    if (unit >= 0) atomicAdd(&own[unit], 1);
  });
  __syncthreads();
  for (int unit = threadIdx.x; unit < chosen.units; unit += kThreads) {
    if (own[unit] != 0) own[unit] = atomicAdd(&counts[unit], own[unit]);
  }
  if constexpr (!kFill) return;
  __syncthreads();
  ForEachPick(chosen, first_row, rows, [&](int unit, int row, int head, int pick) {
    if (unit < 0) return;
    const int slot = (row * chosen.problem.heads + head) * chosen.picks + pick;
    chosen.entries[atomicAdd(&own[unit], 1)] = slot;
  });
}

// Stays where it is written: the compiler would put it off until its values are used.
__device__ inline float4 LoadNow(const float* from) {
  float4 x;
  asm volatile("ld.global.v4.f32 {%0,%1,%2,%3}, [%4];\n"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "l"(from));
  return x;
}

// A warp does a row: each lane looks at one slot's state and adds up four dims.
__global__ void __launch_bounds__(kThreads)
    MergeSlots(const Chosen chosen, int first_row, int rows) {
  const Problem& problem = chosen.problem;
  const int lane = threadIdx.x % 32;
  const int64_t at = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;  // in the chunk
  if (at >= int64_t{rows} * problem.heads) return;
  const int64_t row = first_row + at / problem.heads, slot = at * chosen.picks;
  const int last = chosen.picks - 1, dim = problem.v_head_dim;
  const int64_t best = (at % problem.heads * chosen.rows + row) * last + lane;
  const bool there = lane < last && chosen.best[best].y >= 0;
  const int before = __popc(__ballot_sync(~0u, there));
  const bool holds = there || lane == last;
  float max = holds ? chosen.states[slot + lane] : kNoScore;
  float sum = holds ? chosen.states[chosen.slots() + slot + lane] : 0;
  float top = max;
  for (int i = 16; i > 0; i /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
  const float weight = sum != 0 ? exp2f(max - top) : 0;
  sum *= sum != 0 ? weight : 0;
  for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
  const int64_t place = row * problem.heads + at % problem.heads;
  const RowEnd end = EndOf(problem.lse[place], top, sum);
  __syncwarp();  // all have read lse
  if (!end.has_new) return;
  if (lane == 0) problem.lse[place] = end.lse;
  float4 out = {};
  const int column = min(4 * lane, dim - 4);
  const float* from = chosen.states + 2 * chosen.slots() + slot * dim + column;
  // Some are read at once, since each read takes longer than all else.
  constexpr int kAtOnce = 8;
  for (int first = 0; first <= last; first += kAtOnce) {
    float4 x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int j = first + i < before ? first + i : last;
      x[i] = LoadNow(from + int64_t{j} * dim);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int j = first + i;
      const float of_slot = __shfl_sync(~0u, weight, min(j, last));
      const float w = j < before || j == last ? of_slot : 0;
      // A weight of 0 keeps values out that are not finite.
      out.x += w != 0 ? w * x[i].x : 0;
      out.y += w != 0 ? w * x[i].y : 0;
      out.z += w != 0 ? w * x[i].z : 0;
      out.w += w != 0 ? w * x[i].w : 0;
    }
  }
  if (4 * lane >= dim) return;
  auto* to = reinterpret_cast<float4*>(problem.out + place * dim + column);
  const float w = end.new_weight;
  float4 value = {w * out.x, w * out.y, w * out.z, w * out.w};
  if (end.has_old) {
    const float4 old = *to;
    const float o = end.old_weight;
    value = {value.x + o * old.x, value.y + o * old.y, value.z + o * old.z, value.w + o * old.w};
  }
  *to = value;
}

int RowsOf(const Chosen& chosen, int chunk) {
  return std::min(chosen.chunk_rows, chosen.rows - chunk * chosen.chunk_rows);
}

}  // namespace

cudaError_t LaunchLists(const Chosen& chosen, const ChosenLists& lists, cudaStream_t stream) {
  const dim3 rows((chosen.rows + kThreads - 1) / kThreads, chosen.problem.heads);
  TakeLists<<<rows, kThreads, 0, stream>>>(chosen, lists);
  return cudaGetLastError();
}

cudaError_t LaunchRoute(const Chosen& chosen, int chunk, cudaStream_t stream) {
  if (chosen.units == 0 || chosen.picks == 1) {
    return cudaMemsetAsync(chosen.tile_count, 0, sizeof(*chosen.tile_count), stream);
  }
  int32_t* counts = chosen.counts + int64_t{chunk} * chosen.kv_heads * chosen.units;
  const int rows = RowsOf(chosen, chunk);
  const int first = chunk * chosen.chunk_rows;
  const dim3 blocks((rows + kThreads - 1) / kThreads, chosen.kv_heads);
  Tally<false><<<blocks, kThreads, 0, stream>>>(chosen, first, rows, counts);
  Offsets<<<1, kOffsetThreads, 0, stream>>>(chosen, counts);
  Tally<true><<<blocks, kThreads, 0, stream>>>(chosen, first, rows, counts);
  return cudaGetLastError();
}

cudaError_t LaunchMergeSlots(const Chosen& chosen, int chunk, cudaStream_t stream) {
  const int rows = RowsOf(chosen, chunk);
  const int warps = kThreads / 32;
  const int thread_blocks = (rows * chosen.problem.heads + warps - 1) / warps;
  MergeSlots<<<thread_blocks, kThreads, 0, stream>>>(chosen, chunk * chosen.chunk_rows, rows);
  return cudaGetLastError();
}

}  // namespace annulus::cuda
