// How a thread block of the sm_90a panel kernel is laid out: warpgroup 0 moves data, each of the
// others does one half of the tile; what lies where in shared memory.
#pragma once

#include <cstdint>

#include "attention/cuda/device.cuh"
#include "attention/cuda/fragments.cuh"
#include "attention/cuda/sm90/copy.cuh"
#include "attention/cuda/sm90/mbarrier.cuh"
#include "attention/cuda/sm90/warpgroup.cuh"

namespace annulus::cuda::sm90 {

// Maps of all memory by the pitch of its rows, as kernel parameters.
struct RowMaps {
  CUtensorMap map[kRowStrides];
  uint64_t reciprocal[kRowStrides];
  int32_t stride[kRowStrides];  // elements
};

// Which map has this stride of rows; < 0: none.
__device__ inline int MapOf(const RowMaps& maps, int64_t stride) {
  int map = -1;
#pragma unroll
  for (int i = 0; i < kRowStrides; ++i) {
    if (maps.stride[i] == stride) map = i;
  }
  return map;
}

__device__ inline Place PlaceOf(const RowMaps& maps, int map, const void* rows) {
  return PlaceAt(reinterpret_cast<uint64_t>(rows),
                 static_cast<uint32_t>(maps.stride[map]) * 2 / kPitchUnit, maps.reciprocal[map]);
}

// kKernel: kPanel90 or kSingle90.
template <int kDim, Kernel kKernel>
struct PanelShape {
  static constexpr int kHeadDim = kDim;
  static constexpr int kValueDim = ValueDimOf(kDim);
  static constexpr int kHalves = HalvesOf(kKernel, kDim);
  static constexpr bool kSingle = kHalves == 1;
  static constexpr int kBlocks = kSingle ? 2 : 1;  // thread blocks of a multiprocessor
  static constexpr int kThreads = kGroupThreads * (kHalves + 1);
  using Budget = Registers<kThreads, kDim >= 128 || kSingle ? 40 : 32,
                           kSingle       ? 216
                           : kDim == 64  ? 112
                           : kDim <= 192 ? 152
                                         : 232,
                           0, kBlocks>;
  // Whether warpgroups start their products in turn, so that not all make weights at once: it gains
  // 2 to 3 % with head dims 64 and 256, and costs as much with 128.
  static constexpr bool kTurns = !kSingle && (kDim == 64 || kDim == 256);
  static constexpr int kKeyStages = kDim == 64 ? 5 : kDim == 128 && !kSingle ? 4 : 3;
  static constexpr int kValueStages = kDim == 64 ? 5 : kDim <= 192 && !kSingle ? 4 : 2;
  static constexpr int kKeyBytes = kBlockKeys * kDim * 2;  // of a block
  static constexpr int kValueBytes = kBlockKeys * kValueDim * 2;
  // From the begin of shared memory: queries by half, keys and values by stage, Control.
  static constexpr int kKeysAt = kHalves * kKeyBytes;
  static constexpr int kValuesAt = kKeysAt + kKeyStages * kKeyBytes;
  static constexpr int kControlAt = kValuesAt + kValueStages * kValueBytes;
};

// One segment, with all that is said of it, so that nobody waits for device memory between tiles.
struct alignas(16) Ticket {
  int32_t blocks;  // < 0: there is no more to do
  int32_t masked;  // the first so many
  int32_t run;     // as of Segment
  int32_t run_at;
  int64_t state;
  Tile tile;
  Problem problem;
};

// Where the rows of a block lie. map: of RowMaps, or one of those below.
struct BlockPlace {
  Place place;
  int32_t map;
};
inline constexpr int32_t kShortMap = -1;
inline constexpr int32_t kNoPage = -2;

template <bool kValues>
struct BlockPlaces {
  BlockPlace k, v;
};
template <>
struct BlockPlaces<false> {  // values lie in the keys
  BlockPlace k;
};

// How the first block of a tile and those seen in part are seen.
template <int kHalves>
struct alignas(16) SeenBlock {
  int32_t sees[kHalves];
  int32_t block;
};

// The next ticket is taken when so many of a ticket's blocks are still to be copied, and not
// sooner: another thread block may be free before.
inline constexpr int kWantedBlocks = 16;
inline constexpr int kChunk = 16;  // blocks whose places are looked up at once, one by lane
inline constexpr int kSeenStages = 4;
// So many of a ticket's first blocks are looked at in how they are seen.
__device__ inline int LookedAt(const Ticket& ticket) {
  return max(ticket.masked, 1);
}

template <typename PanelShape>
struct Control {
  using Shape = PanelShape;
  static constexpr bool kValues = true;
  Ticket tickets[2];
  BlockPlaces<kValues> places[2][kChunk];
  SeenBlock<Shape::kHalves> seen[2][kChunk];
  SeenBlock<Shape::kHalves> staged[kSeenStages];  // there as soon as the keys are
  uint64_t ticket_full[2];
  uint64_t ticket_empty[2];
  uint64_t ticket_wanted;
  uint64_t places_full[2];
  uint64_t places_empty[2];
  uint64_t queries_full[Shape::kHalves];
  uint64_t queries_empty[Shape::kHalves];
  uint64_t seen_empty[kSeenStages];
  uint64_t keys_full[Shape::kKeyStages];
  uint64_t keys_empty[Shape::kKeyStages];
  uint64_t values_full[Shape::kValueStages];
  uint64_t values_empty[Shape::kValueStages];
};

// Warps that read tickets beside the consumers: one that copies blocks, two that copy queries.
inline constexpr int kQueryWarps = 2;

template <typename Shape>
__device__ inline void InitBarriers(Control<Shape>& control) {
  const auto init = [](uint64_t& barrier, int arrivals) {
    InitBarrier(SharedAddress(&barrier), arrivals);
  };
  for (int i = 0; i < 2; ++i) {
    init(control.ticket_full[i], 32);
    init(control.ticket_empty[i], 32 * (1 + kQueryWarps) + kGroupThreads * Shape::kHalves);
    init(control.places_full[i], 32);
    init(control.places_empty[i], 32);
  }
  init(control.ticket_wanted, 1);
  for (int i = 0; i < Shape::kHalves; ++i) {
    init(control.queries_full[i], 32 * kQueryWarps);
    init(control.queries_empty[i], kGroupThreads);
  }
  for (int i = 0; i < Shape::kKeyStages; ++i) {
    init(control.keys_full[i], 1);
    init(control.keys_empty[i], Shape::kHalves);
  }
  for (int i = 0; i < kSeenStages; ++i) init(control.seen_empty[i], 4 * Shape::kHalves);
  for (int i = 0; i < Shape::kValueStages; ++i) {
    init(control.values_full[i], 1);
    init(control.values_empty[i], Shape::kHalves);
  }
  FenceBarrierInit();
}

template <typename Shape>
constexpr int SharedBytes() {
  constexpr int kBytes = Shape::kControlAt + static_cast<int>(sizeof(Control<Shape>));
  static_assert(Shape::kBlocks * (kBytes + 1024) <= 228 << 10);  // 1 KB is the system's
  return kBytes;
}

}  // namespace annulus::cuda::sm90
