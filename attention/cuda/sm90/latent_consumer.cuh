// The warpgroups of the sm_90a kernel for latent heads that compute.
#pragma once

#include <cstdint>

#include "attention/cuda/sm90/latent_shape.cuh"
#include "attention/cuda/sm90/panel_consumer.cuh"

namespace annulus::cuda::sm90 {

using LatentOut = float[kLatentColumns / 8][4];

// What both have: the rows at hand, the ring of keys.
template <int kDim>
class LatentGroup {
 public:
  using Shape = LatentShape<kDim>;

  __device__ LatentGroup(LatentControl<kDim>& control, uint32_t shared)
      : control_(control),
        weights_at_(shared + Shape::kWeightsAt),
        values_at_(Describe(shared + Shape::kKeysAt, kBoxBytes)),
        lane_(threadIdx.x % 32),
        row_(threadIdx.x % kGroupThreads / 32 * 16 + threadIdx.x % 32 / 4) {}

 protected:
  // By one thread for all four warps: their products end together.
  __device__ void Free(uint64_t& barrier) {
    if (threadIdx.x % kGroupThreads == 0) Arrive(SharedAddress(&barrier));
  }
  __device__ void AwaitKeys() {
    Wait(SharedAddress(&control_.keys_full[keys_.stage]), keys_.parity);
  }
  __device__ uint64_t AtHand(uint64_t first) const {
    const uint32_t low = static_cast<uint32_t>(first) + keys_.stage * (Shape::kKeyBytes >> 4);
    return (first & 0xffffffff00000000ull) | Uniform(low);
  }
  // Where row `row_ + 8 · i` lies in out; < 0: the half has no such row.
  __device__ int64_t PlaceOfRow(const Ticket& ticket, int i) const {
    const Half& half = ticket.tile.half[0];
    const int row = row_ + 8 * i;
    return row < half.tokens * half.heads ? PlaceOf(ticket.problem, half, row) : -1;
  }

  LatentControl<kDim>& control_;
  const uint32_t weights_at_;
  const uint64_t values_at_;
  const int lane_;
  const int row_;  // the thread has this one and the one 8 below
  Ring<Shape::kStages> keys_;
  Ring<1> weights_;
  Ring<1> ends_;
};

template <typename T, int kDim>
class Scorer : LatentGroup<kDim> {
 public:
  using Shape = LatentShape<kDim>;

  __device__ Scorer(const Work& work, LatentControl<kDim>& control, uint32_t shared)
      : LatentGroup<kDim>(control, shared),
        work_(work),
        queries_(Describe(shared, 0)),
        keys_at_(Describe(shared + Shape::kKeysAt, 0)) {}

  __device__ void Run() {
    Ring<2> tickets;
    Ring<1> queries;
    for (;;) {
      Wait(SharedAddress(&control_.ticket_full[tickets.stage]), tickets.parity);
      const Ticket& ticket = control_.tickets[tickets.stage];
      const auto blocks = static_cast<int>(Uniform(static_cast<uint32_t>(ticket.blocks)));
      if (blocks < 0) return;
      Wait(SharedAddress(&control_.queries_full[0]), queries.parity);
      DoTile(ticket, blocks);
      Arrive(SharedAddress(&control_.ticket_empty[tickets.stage]));
      tickets.Next();
      queries.Next();
    }
  }

 private:
  using Base = LatentGroup<kDim>;
  using Base::control_;
  using Base::ends_;
  using Base::keys_;
  using Base::lane_;
  using Base::row_;
  using Base::values_at_;
  using Base::weights_;
  using Base::weights_at_;
  using Weights = uint32_t[4][4];

  // The products of one block's weights and values run before those of the next block's scores, so
  // that its stage is free while these are made.
  __device__ void DoTile(const Ticket& ticket, int blocks) {
    const auto looked_at = static_cast<int>(Uniform(static_cast<uint32_t>(LookedAt(ticket))));
    RowState state;
    LatentOut out = {};
    Weights weights;
    float s[8][4];
    this->AwaitKeys();
    FenceProducts();
    ScoreBlock<T, kDim>(s, queries_, this->AtHand(keys_at_));
    CommitProducts();
    WaitForProducts();
    Pin(s);
    for (int i = 0; i + 1 < blocks; ++i) {
      Soften(ticket, i < looked_at, s, state, out, weights);
      Pin(out);
      Pin(weights);
      FenceProducts();
      AddBlock<T>(out, weights, this->AtHand(values_at_));
      CommitProducts();
      uint64_t& added = control_.keys_empty[keys_.stage];
      keys_.Next();
      this->AwaitKeys();
      FenceProducts();
      ScoreBlock<T, kDim>(s, queries_, this->AtHand(keys_at_));
      CommitProducts();
      WaitForProducts<1>();
      this->Free(added);
      WaitForProducts();
      Pin(s);
      Pin(out);
      Pin(weights);
    }
    this->Free(control_.queries_empty[0]);
    Soften(ticket, blocks <= looked_at, s, state, out, weights);
    Pin(out);
    Pin(weights);
    FenceProducts();
    AddBlock<T>(out, weights, this->AtHand(values_at_));
    CommitProducts();
    WaitForProducts();
    Pin(out);
    Pin(weights);
    this->Free(control_.keys_empty[keys_.stage]);
    keys_.Next();
    End(ticket, state, out);
  }

  // Scores become weights, which the adder gets too.
  __device__ void Soften(const Ticket& ticket, bool look, float (&s)[8][4], RowState& state,
                         LatentOut& out, Weights& weights) {
    if (look) Mask(ticket, s);
    float step[2];
    float shrink[2];
    SoftenExactly<T>(s, ticket.problem.scale_log2, state, out, step, weights, shrink);
    Wait(SharedAddress(&control_.weights_empty), weights_.parity ^ 1);
    const uint32_t to = weights_at_ + row_ * 128 + lane_ % 4 * 4;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const uint32_t at = to + (n ^ row_ % 8) * 16;
      StoreShared4(at, weights[n / 2][n % 2 * 2]);
      StoreShared4(at + 8 * 128, weights[n / 2][n % 2 * 2 + 1]);
    }
    if (lane_ % 4 == 0) {
      control_.shrinks[row_] = shrink[0];
      control_.shrinks[row_ + 8] = shrink[1];
    }
    FenceSharedStores();
    Arrive(SharedAddress(&control_.weights_full));
    weights_.Next();
    state.sum[0] += step[0];
    state.sum[1] += step[1];
  }

  __device__ void Mask(const Ticket& ticket, float (&s)[8][4]) {
    int sees = 0;
    int block = 0;
    if (lane_ == 0) {
      sees = control_.staged[seen_.stage].sees[0];
      block = control_.staged[seen_.stage].block;
      Arrive(SharedAddress(&control_.seen_empty[seen_.stage]));
    }
    seen_.Next();
    sees = __shfl_sync(~0u, sees, 0);
    block = __shfl_sync(~0u, block, 0);
    const Half& half = ticket.tile.half[0];
    const uint64_t existing = ExistingKeys(ticket.problem, block);
    MaskScores<8>(s, RowMask(work_, half, sees, row_, existing),
                  RowMask(work_, half, sees, row_ + 8, existing), lane_);
  }

  __device__ void End(const Ticket& ticket, const RowState& state, const LatentOut& out) {
    const Problem& problem = ticket.problem;
    const Half& half = ticket.tile.half[0];
    const float whole[2] = {SumOfRow(state.sum[0]), SumOfRow(state.sum[1])};
    if (ticket.state >= 0) {
      KeepRows(problem, half, work_.states + ticket.state, half.tokens * half.heads, 0, row_, lane_,
               state.max, whole, out);
      return;
    }
    int64_t place[2];
    RowEnd end[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      place[i] = this->PlaceOfRow(ticket, i);
      end[i] = EndOf(place[i] < 0 ? 0 : problem.lse[place[i]], state.max[i], whole[i]);
    }
    Wait(SharedAddress(&control_.ends_empty), ends_.parity ^ 1);
    if (lane_ % 4 == 0) {
      control_.ends[row_] = end[0];
      control_.ends[row_ + 8] = end[1];
    }
    Arrive(SharedAddress(&control_.ends_full));
    ends_.Next();
    __syncwarp();  // all have read lse
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (place[i] < 0 || !end[i].has_new) continue;
      if (lane_ % 4 == 0) problem.lse[place[i]] = end[i].lse;
      GiveColumns(problem, place[i], 0, lane_, end[i], i, out);
    }
  }

  const Work& work_;
  const uint64_t queries_;
  const uint64_t keys_at_;
  Ring<kSeenStages> seen_;
};

template <typename T, int kDim>
class Adder : LatentGroup<kDim> {
 public:
  using Shape = LatentShape<kDim>;

  __device__ Adder(const Work& work, LatentControl<kDim>& control, uint32_t shared)
      : LatentGroup<kDim>(control, shared), work_(work), products_(Describe(weights_at_, 0)) {}

  __device__ void Run() {
    Ring<2> tickets;
    for (;;) {
      Wait(SharedAddress(&control_.ticket_full[tickets.stage]), tickets.parity);
      const Ticket& ticket = control_.tickets[tickets.stage];
      const auto blocks = static_cast<int>(Uniform(static_cast<uint32_t>(ticket.blocks)));
      if (blocks < 0) return;
      LatentOut out = {};
      for (int i = 0; i < blocks; ++i) Step(out);
      End(ticket, out);
      Arrive(SharedAddress(&control_.ticket_empty[tickets.stage]));
      tickets.Next();
    }
  }

 private:
  using Base = LatentGroup<kDim>;
  using Base::control_;
  using Base::ends_;
  using Base::keys_;
  using Base::lane_;
  using Base::row_;
  using Base::values_at_;
  using Base::weights_;
  using Base::weights_at_;

  __device__ void Step(LatentOut& out) {
    Wait(SharedAddress(&control_.weights_full), weights_.parity);
    const float shrink[2] = {control_.shrinks[row_], control_.shrinks[row_ + 8]};
    if (__any_sync(~0u, shrink[0] != 1 || shrink[1] != 1)) {
#pragma unroll
      for (int n = 0; n < kLatentColumns / 8; ++n) {
        out[n][0] *= shrink[0];
        out[n][1] *= shrink[0];
        out[n][2] *= shrink[1];
        out[n][3] *= shrink[1];
      }
    }
    this->AwaitKeys();  // they are there, but for all that this warpgroup knows
    Pin(out);
    FenceProducts();
    AddBlock<T>(out, products_, this->AtHand(values_at_) + Bytes(kLatentColumns / 64 * kBoxBytes));
    CommitProducts();
    WaitForProducts();
    Pin(out);
    Arrive(SharedAddress(&control_.weights_empty));
    weights_.Next();
    this->Free(control_.keys_empty[keys_.stage]);
    keys_.Next();
  }

  __device__ void End(const Ticket& ticket, const LatentOut& out) {
    const Half& half = ticket.tile.half[0];
    const int rows = half.tokens * half.heads;
    if (ticket.state >= 0) {
      float* outs = work_.states + ticket.state + 2 * rows;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = row_ + 8 * i;
        if (row >= rows) continue;
        KeepColumns(ticket.problem, outs + row * kLatentDim, kLatentColumns, lane_, i, out);
      }
      return;
    }
    Wait(SharedAddress(&control_.ends_full), ends_.parity);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t place = this->PlaceOfRow(ticket, i);
      const RowEnd end = control_.ends[row_ + 8 * i];
      if (place < 0 || !end.has_new) continue;
      GiveColumns(ticket.problem, place, kLatentColumns, lane_, end, i, out);
    }
    Arrive(SharedAddress(&control_.ends_empty));
    ends_.Next();
  }

  const Work& work_;
  const uint64_t products_;  // the weights, as an operand
};

}  // namespace annulus::cuda::sm90
