// How a thread block of the sm_90a kernel for latent heads is laid out. Values are the first
// kLatentDim columns of the keys' own rows, so that a block comes once. Warpgroup 0 moves data; two
// share out 64 query rows by columns of their values: the scorer makes the weights for both and
// adds the left half of the columns, the adder adds the right half.
#pragma once

#include <cstdint>

#include "attention/cuda/sm90/panel_shape.cuh"

namespace annulus::cuda::sm90 {

template <int kDim>
struct LatentShape {
  static constexpr int kHeadDim = kDim;
  static constexpr int kHalves = 1;
  static constexpr int kThreads = 3 * kGroupThreads;
  using Budget = Registers<kThreads, 40, 232, 16>;
  static constexpr int kStages = 2;
  static constexpr int kKeyBytes = kBlockKeys * kDim * 2;
  // From the begin of shared memory: queries, keys by stage, weights, LatentControl.
  static constexpr int kKeysAt = kKeyBytes;
  static constexpr int kWeightsAt = kKeysAt + kStages * kKeyBytes;
  static constexpr int kControlAt = kWeightsAt + kBoxBytes;
};

inline constexpr int kLatentColumns = kLatentDim / 2;  // of a warpgroup

template <int kDim>
struct LatentControl {
  using Shape = LatentShape<kDim>;
  static constexpr bool kValues = false;
  Ticket tickets[2];
  BlockPlaces<kValues> places[2][kChunk];
  SeenBlock<1> seen[2][kChunk];
  SeenBlock<1> staged[kSeenStages];  // there as soon as the keys are
  RowEnd ends[kPanelRows];           // from the scorer to the adder, as are shrinks and weights
  float shrinks[kPanelRows];         // of what was added before the weights at hand
  uint64_t ticket_full[2];
  uint64_t ticket_empty[2];
  uint64_t ticket_wanted;
  uint64_t places_full[2];
  uint64_t places_empty[2];
  uint64_t queries_full[1];
  uint64_t queries_empty[1];
  uint64_t seen_empty[kSeenStages];
  uint64_t keys_full[Shape::kStages];
  uint64_t keys_empty[Shape::kStages];
  uint64_t weights_full;
  uint64_t weights_empty;
  uint64_t ends_full;
  uint64_t ends_empty;
};

template <int kDim>
__device__ inline void InitBarriers(LatentControl<kDim>& control) {
  const auto init = [](uint64_t& barrier, int arrivals) {
    InitBarrier(SharedAddress(&barrier), arrivals);
  };
  for (int i = 0; i < 2; ++i) {
    init(control.ticket_full[i], 32);
    init(control.ticket_empty[i], 32 * (1 + kQueryWarps) + 2 * kGroupThreads);
    init(control.places_full[i], 32);
    init(control.places_empty[i], 32);
  }
  init(control.ticket_wanted, 1);
  init(control.queries_full[0], 32 * kQueryWarps);
  init(control.queries_empty[0], 1);
  for (int i = 0; i < kSeenStages; ++i) init(control.seen_empty[i], 4);
  for (int i = 0; i < LatentShape<kDim>::kStages; ++i) {
    init(control.keys_full[i], 1);
    init(control.keys_empty[i], 2);
  }
  init(control.weights_full, kGroupThreads);
  init(control.weights_empty, kGroupThreads);
  init(control.ends_full, kGroupThreads);
  init(control.ends_empty, kGroupThreads);
  FenceBarrierInit();
}

template <int kDim>
constexpr int LatentBytes() {
  return LatentShape<kDim>::kControlAt + static_cast<int>(sizeof(LatentControl<kDim>));
}
static_assert(LatentBytes<512>() <= 232448 && LatentBytes<576>() <= 232448);

}  // namespace annulus::cuda::sm90
