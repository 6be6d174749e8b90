// Means of units, scores by them, and each row's best units (choose.h). Scores are sums in f64 of
// exact products: eight of them, of dims congruent modulo 8, each in ascending order.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/cuda/choose.h"
#include "attention/cuda/device.cuh"
#include "attention/cuda/load.cuh"

namespace annulus::cuda {
namespace {

constexpr int kRows = 64;   // of one head, by thread block
constexpr int kUnits = 32;  // at once: one by lane
constexpr int kThreads = 128;
constexpr int kTile = 4;  // rows, and units, of a thread
constexpr int kSums = 8;

template <typename T>
__device__ inline float ToFloat(T x) {
  return static_cast<float>(x);
}

// A thread does a dim of a unit.
template <typename T>
__global__ void Means(const Chosen chosen) {
  const Problem& problem = chosen.problem;
  const int unit = blockIdx.x, head = blockIdx.y;
  const double tokens = static_cast<double>(chosen.unit_blocks) * kBlockKeys;
  for (int c = threadIdx.x; c < problem.head_dim; c += blockDim.x) {
    double total = 0;
    for (int b = 0; b < chosen.unit_blocks; ++b) {
      const int64_t block = int64_t{unit} * chosen.unit_blocks + b;
      const Page page = problem.pages[block * problem.kv_heads + head];
      double sum = 0;
      if (page.k == nullptr) {
        if (c == 0) ReportMissing(chosen.report, 0, head, static_cast<int>(block));
      } else {
        const T* k = static_cast<const T*>(page.k) + c;
#pragma unroll 16
        for (int r = 0; r < kBlockKeys; ++r) sum += ToFloat(k[int64_t{r} * page.k_row_stride]);
      }
      total += static_cast<float>(sum);
    }
    chosen.means[(int64_t{head} * chosen.units + unit) * problem.head_dim + c] =
        static_cast<float>(total / tokens);
  }
}

struct Shared {
  double q[kChosenDimMax][kRows];
  double means[kChosenDimMax][kUnits];
  float scores[kRows][kUnits + 1];
  // [kLists, picks − 1, kRows], in any order: threads share out the units of each row, and list
  // theirs alone.
  uint64_t best[];
};
constexpr int kLists = kThreads / kRows;

using Products = double[kTile][kTile];

// The sums over the dims congruent to `residue` modulo kStep, folded as scores.cc folds them.
template <int kStep>
__device__ inline void Add(const double* q, const double* means, int dim, int residue,
                           Products& to) {
  if constexpr (kStep == kSums) {
#pragma unroll
    for (auto& row : to) {
#pragma unroll
      for (double& sum : row) sum = 0;
    }
#pragma unroll 2
    for (int c = residue; c < dim; c += kSums) {
      double rows[kTile], units[kTile];
#pragma unroll
      for (int i = 0; i < kTile; i += 2) {
        const auto pair = *reinterpret_cast<const double2*>(q + c * kRows + 8 * i);
        rows[i] = pair.x;
        rows[i + 1] = pair.y;
        const auto two = *reinterpret_cast<const double2*>(means + c * kUnits + i);
        units[i] = two.x;
        units[i + 1] = two.y;
      }
#pragma unroll
      for (int r = 0; r < kTile; ++r) {
#pragma unroll
        for (int u = 0; u < kTile; ++u) to[r][u] = fma(rows[r], units[u], to[r][u]);
      }
    }
  } else {
    Add<2 * kStep>(q, means, dim, residue, to);
    Products more;
    Add<2 * kStep>(q, means, dim, residue + kStep, more);
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
#pragma unroll
      for (int u = 0; u < kTile; ++u) to[r][u] += more[r][u];
    }
  }
}

// A candidate as a number: the larger, the sooner in the order of Before(). 0 is none.
__device__ inline uint64_t KeyOf(float score, int unit) {
  const uint32_t bits = __float_as_uint(score + 0.0f);  // no −0
  const uint32_t ordered = bits ^ (bits >> 31 != 0 ? ~0u : 0x80000000u);
  return uint64_t{ordered} << 32 | ~static_cast<uint32_t>(unit);
}
__device__ inline int2 CandidateOf(uint64_t key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  const uint32_t bits = ordered ^ (ordered >> 31 != 0 ? 0x80000000u : ~0u);
  return {static_cast<int>(bits), static_cast<int>(~static_cast<uint32_t>(key))};
}

// A thread's list of a row's best, and the least of them. Loads that do not wait for one another:
// a list in order would take one after the other.
struct List {
  uint64_t* keys;  // kRows apart
  int length;
  int at = 0;
  uint64_t least = 0;

  __device__ void Take(uint64_t key) {
    keys[at * kRows] = key;
    least = ~uint64_t{0};
#pragma unroll 4
    for (int i = 0; i < length; ++i) {
      const uint64_t one = keys[i * kRows];
      if (one < least) {
        least = one;
        at = i;
      }
    }
  }
};

// Offers the scores of the first `units` units from `unit` on.
__device__ inline void Offer(const float* scores, int unit, int units, List& list) {
  uint32_t better = 0;
#pragma unroll
  for (int i = 0; i < kUnits / kLists; ++i) {
    if (i < units && KeyOf(scores[i], unit + i) > list.least) better |= 1u << i;
  }
  while (better != 0) {  // few are, mostly, and not the same ones for all rows
    const int i = __ffs(static_cast<int>(better)) - 1;
    better &= better - 1;
    const uint64_t key = KeyOf(scores[i], unit + i);
    if (key > list.least) list.Take(key);
  }
}

template <typename T>
__device__ inline void LoadQueries(const Chosen& chosen, int head, int first, double (*to)[kRows]) {
  const Problem& problem = chosen.problem;
  const T* q = static_cast<const T*>(problem.q) + head * problem.q_head_stride;
  constexpr int kChunk = 16 / sizeof(T);
  const int row = threadIdx.x % kRows;
  for (int chunk = threadIdx.x / kRows; chunk * kChunk < problem.head_dim;
       chunk += kThreads / kRows) {
    uint4 bytes = {};
    if (first + row < chosen.rows) {
      bytes = *reinterpret_cast<const uint4*>(q + (int64_t{first} + row) * problem.q_token_stride +
                                              chunk * kChunk);
    }
    const T* values = reinterpret_cast<const T*>(&bytes);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) to[chunk * kChunk + i][row] = ToFloat(values[i]);
  }
}

__device__ inline void LoadMeans(const Chosen& chosen, int kv_head, int first, int end,
                                 double (*to)[kUnits]) {
  const int dim = chosen.problem.head_dim, unit = threadIdx.x % kUnits;
  const float* from = chosen.means + (int64_t{kv_head} * chosen.units + first + unit) * dim;
  for (int c = threadIdx.x / kUnits * 4; c < dim; c += kThreads / kUnits * 4) {
    float4 mean = {};
    if (first + unit < end) mean = *reinterpret_cast<const float4*>(from + c);
    to[c][unit] = mean.x;
    to[c + 1][unit] = mean.y;
    to[c + 2][unit] = mean.z;
    to[c + 3][unit] = mean.w;
  }
}

// The scores of the thread's rows by its units.
__device__ inline void Score(Shared& shared, int dim) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = warp % 2 * 32 + lane % 8 * 2, unit = warp / 2 * 16 + lane / 8 * 4;
  Products products;
  Add<1>(&shared.q[0][row], &shared.means[0][unit], dim, 0, products);
#pragma unroll
  for (int r = 0; r < kTile; ++r) {
#pragma unroll
    for (int u = 0; u < kTile; ++u) {
      const double total = products[r][u];
      shared.scores[row + r / 2 * 16 + r % 2][unit + u] =
          isnan(total) ? INFINITY : static_cast<float>(total);
    }
  }
}

// Gives the best of a row's lists.
__device__ inline void GiveBest(const Chosen& chosen, int head, int row, const uint64_t* best) {
  const int length = chosen.picks - 1;
  const int64_t place = int64_t{head} * chosen.rows + row;
  uint64_t before = ~uint64_t{0};
  for (int i = 0; i < length; ++i) {
    uint64_t key = 0;  // the largest below the one before: no two are the same
#pragma unroll 4
    for (int j = 0; j < kLists * length; ++j) {
      const uint64_t one = best[j * kRows];
      if (one < before) key = max(key, one);
    }
    const int2 candidate = key == 0 ? int2{0, -1} : CandidateOf(key);
    chosen.best[place * length + i] = candidate;
    if (key == 0) continue;
    before = key;
    if (!isfinite(__int_as_float(candidate.x))) {
      atomicMin(chosen.unscored, static_cast<unsigned long long>(place));
    }
  }
}

// 64 rows of a head by thread block, those with most candidates first.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2) Choose(const Chosen chosen) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (chosen.stop != nullptr &&
      __syncthreads_or(threadIdx.x == 0 && *static_cast<const volatile int*>(chosen.stop) != 0)) {
    return;
  }
  const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kRows;
  const int head = blockIdx.y, kv_head = head / chosen.group;
  const int length = chosen.picks - 1;
  const int rows = min(kRows, chosen.rows - first);
  for (int i = threadIdx.x; i < kLists * kRows * length; i += kThreads) shared.best[i] = 0;
  LoadQueries<T>(chosen, head, first, shared.q);
  const int row = threadIdx.x % kRows, list = threadIdx.x / kRows;
  const auto own = static_cast<int>(chosen.OwnUnit(min(first + row, chosen.rows - 1)));
  const auto end = static_cast<int>(chosen.OwnUnit(first + rows - 1));
  List best{shared.best + list * length * kRows + row, length};
  for (int unit = 0; unit < end; unit += kUnits) {
    LoadMeans(chosen, kv_head, unit, end, shared.means);
    __syncthreads();
    Score(shared, chosen.problem.head_dim);
    __syncthreads();  // scores are there, and nobody reads the means any more
    const int at = list * (kUnits / kLists);
    if (length > 0) Offer(&shared.scores[row][at], unit + at, own - unit - at, best);
  }
  __syncthreads();
  if (list == 0 && row < rows) GiveBest(chosen, head, first + row, best.keys);
}

size_t SharedBytes(int picks) {
  return sizeof(Shared) + static_cast<size_t>(kThreads) * (picks - 1) * sizeof(uint64_t);
}

template <typename T>
cudaError_t Start(const Chosen& chosen, cudaStream_t stream) {
  if (chosen.units > 0) {
    const dim3 units(chosen.units, chosen.kv_heads);
    Means<T><<<units, kThreads, 0, stream>>>(chosen);
  }
  const dim3 tiles((chosen.rows + kRows - 1) / kRows, chosen.problem.heads);
  Choose<T><<<tiles, kThreads, SharedBytes(chosen.picks), stream>>>(chosen);
  return cudaGetLastError();
}

template <typename T>
cudaError_t Load() {
  int thread_blocks = 0;
  return LoadKernel(Choose<T>, kThreads, static_cast<int>(SharedBytes(kChosenPicksMax)),
                    &thread_blocks);
}

}  // namespace

cudaError_t LoadChoose() {
  if (const cudaError_t error = Load<float>(); error != cudaSuccess) return error;
  if (const cudaError_t error = Load<__half>(); error != cudaSuccess) return error;
  return Load<__nv_bfloat16>();
}

cudaError_t LaunchChoose(const Chosen& chosen, cudaStream_t stream) {
  switch (chosen.problem.kv_format) {
    case Format::kF32:
      return Start<float>(chosen, stream);
    case Format::kF16:
      return Start<__half>(chosen, stream);
    case Format::kBF16:
      return Start<__nv_bfloat16>(chosen, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace annulus::cuda
