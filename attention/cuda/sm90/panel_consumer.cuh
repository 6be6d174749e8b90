// A warpgroup of the sm_90a panel kernel that computes: 64 rows, one half of the tile.
#pragma once

#include <cstdint>

#include "attention/cuda/sm90/panel_shape.cuh"
#include "attention/cuda/sm90/wgmma.cuh"

namespace annulus::cuda::sm90 {

// Weights are relative to the maximum that is known, as powers of two, and are made so much smaller
// that no sum of values overflows where a maximum is found late. The least values still count.
template <typename T>
inline constexpr float kHeadroom = kMayOverflow<T> ? 8.0f : 0.0f;
// The known maximum is left alone until a score is beyond it by so much,
inline constexpr float kGrowth = 8.0f;
// or, without a look at scores, while a block's weights of two rows in a thread are less: 2¹⁵.
template <typename T>
inline constexpr float kWeightsMax = kMayOverflow<T> ? 128.0f : 32768.0f;

inline constexpr float kScoreMax = 0x1p24f;  // in units of log2

// The softmax state of a thread's two rows: max in units of log2, with kHeadroom added; sum of this
// thread's columns.
struct RowState {
  float max[2] = {kNoScore, kNoScore};
  float sum[2] = {0, 0};
};

// Scores become weights relative to the maximum, which is looked for; out and sums are rescaled
// where it grew by much, `shrink` times. A score of −inf makes the sum NaN.
template <typename T, int kTiles>
__device__ inline void SoftenExactly(float (&s)[8][4], float scale, RowState& state,
                                     float (&out)[kTiles][4], float (&step)[2],
                                     uint32_t (&weights)[4][4], float (&shrink)[2]) {
  float base[2];
  bool grown = false;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top[4];
    float least[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      top[i] =
          fmaxf(fmaxf(s[i][2 * r], s[i][2 * r + 1]), fmaxf(s[i + 4][2 * r], s[i + 4][2 * r + 1]));
      least[i] =
          fminf(fminf(s[i][2 * r], s[i][2 * r + 1]), fminf(s[i + 4][2 * r], s[i + 4][2 * r + 1]));
    }
    const float score = MaxOfRow(fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3])));
    const float most =
        score > kUnseen ? __fadd_rn(__fmul_rn(score, scale), kHeadroom<T>) : kNoScore;
    const bool grows = most > state.max[r] + kGrowth;
    const float now = grows ? most : state.max[r];
    shrink[r] = grows ? Exp2(state.max[r] - now) : 1.0f;
    state.max[r] = now;
    base[r] = now == kNoScore ? 0.0f : now;  // a row that has seen nothing keeps a sum of 0
    grown |= grows;
    // Also if all that is seen times the scale is −inf.
    const bool lost = fminf(fminf(least[0], least[1]), fminf(least[2], least[3])) < kUnseen ||
                      (score > kUnseen && most == kNoScore);
    step[r] = kMayOverflow<T> && lost ? NAN : 0;
  }
  if (__any_sync(~0u, grown)) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      state.sum[r] *= shrink[r];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        out[n][2 * r] *= shrink[r];
        out[n][2 * r + 1] *= shrink[r];
      }
    }
  }
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Rounded as the maximum was: huge ones would not cancel else.
      s[n][i] = Exp2(__fadd_rn(__fmul_rn(s[n][i], scale), -base[i / 2]));
      step[i / 2] += s[n][i];
    }
    weights[n / 2][n % 2 * 2] = Pack<T>(s[n][0], s[n][1]);
    weights[n / 2][n % 2 * 2 + 1] = Pack<T>(s[n][2], s[n][3]);
  }
}

// The same with the maximum as it is known, if no weight becomes too large with it, as good as
// always: then there is no wait for the largest score. Any maximum gives the same answer, since
// weights keep their relative precision. Not where some keys are not seen, nor where scores may be
// beyond kScoreMax: even the last bit of such ones is much, and does not cancel in one rounding.
template <typename T, int kTiles>
__device__ inline void SoftenBlock(float (&s)[8][4], float scale, RowState& state,
                                   float (&out)[kTiles][4], uint32_t (&weights)[4][4]) {
  float step[2] = {0, 0};
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    float e[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      e[i] = Exp2(fmaf(s[n][i], scale, -state.max[i / 2]));
      step[i / 2] += e[i];
    }
    weights[n / 2][n % 2 * 2] = Pack<T>(e[0], e[1]);
    weights[n / 2][n % 2 * 2 + 1] = Pack<T>(e[2], e[3]);
  }
  // True too where the sum is NaN: also of a row that has seen nothing, whose maximum is −inf.
  if (__any_sync(~0u, !(step[0] + step[1] < kWeightsMax<T>))) {
    float shrink[2];
    SoftenExactly<T>(s, scale, state, out, step, weights, shrink);
  }
  state.sum[0] += step[0];
  state.sum[1] += step[1];
}

// Named barriers: 0 is the thread block's, the next four are those of AnyOfGroup.
inline constexpr int kGroupBarriers = 1;
inline constexpr int kTurnBarriers = kGroupBarriers + kHalves;

template <typename T, typename Shape>
class Consumer {
 public:
  static constexpr int kDim = Shape::kHeadDim;

  __device__ Consumer(const Work& work, Control<Shape>& control, uint32_t shared, int half)
      : work_(work),
        control_(control),
        half_(half),
        queries_(Describe(shared + half * Shape::kKeyBytes, 0)),
        keys_at_(Describe(shared + Shape::kKeysAt, 0)),
        values_at_(Describe(shared + Shape::kValuesAt, kBoxBytes)),
        lane_(threadIdx.x % 32),
        row_(threadIdx.x % kGroupThreads / 32 * 16 + threadIdx.x % 32 / 4) {}

  __device__ void Run() {
    if (half_ == Shape::kHalves - 1) PassTurn();
    Ring<2> tickets;
    Ring<1> queries;
    for (;;) {
      Wait(SharedAddress(&control_.ticket_full[tickets.stage]), tickets.parity);
      const Ticket& ticket = control_.tickets[tickets.stage];
      const auto blocks = static_cast<int>(Uniform(static_cast<uint32_t>(ticket.blocks)));
      if (blocks < 0) return;
      Wait(SharedAddress(&control_.queries_full[half_]), queries.parity);
      DoTile(ticket, blocks);
      Arrive(SharedAddress(&control_.ticket_empty[tickets.stage]));
      tickets.Next();
      queries.Next();
    }
  }

 private:
  using Out = float[Shape::kValueDim / 8][4];
  using Weights = uint32_t[4][4];

  // All warpgroups do the same number of steps.
  __device__ void AwaitTurn() const { AwaitTurn(half_); }
  __device__ void PassTurn() const { PassTurn(half_); }
  __device__ void AwaitTurn(int half) const {
    if constexpr (Shape::kTurns) AwaitGroup(kTurnBarriers + half);
  }
  __device__ void PassTurn(int half) const {
    const int next = half + 1 == Shape::kHalves ? 0 : half + 1;
    if constexpr (Shape::kTurns) TellGroup(kTurnBarriers + next);
  }
  // By one thread for all four warps: their products end together.
  __device__ void Free(uint64_t& barrier) {
    if (threadIdx.x % kGroupThreads == 0) Arrive(SharedAddress(&barrier));
  }
  // What the thread's two rows see of the block whose keys are in the stage at hand, but for keys
  // that do not exist. Masks are on their way while the block's products run: nothing is done with
  // them before.
  struct Seen {
    uint64_t low;
    uint64_t high;
    uint64_t existing;
  };
  __device__ Seen Look(const Ticket& ticket) {
    int sees = 0;
    int block = 0;
    if (lane_ == 0) {
      sees = control_.staged[seen_.stage].sees[half_];
      block = control_.staged[seen_.stage].block;
      Arrive(SharedAddress(&control_.seen_empty[seen_.stage]));
    }
    seen_.Next();
    sees = __shfl_sync(~0u, sees, 0);
    block = __shfl_sync(~0u, block, 0);
    const Half& half = ticket.tile.half[half_];
    const uint64_t all = sees == kSeesAll ? ~uint64_t{0} : 0;
    Seen seen = {all, all, ExistingKeys(ticket.problem, block)};
    const int rows = sees < 0 ? 0 : half.tokens * half.heads;
    const uint64_t* masks = work_.masks + int64_t{sees} * kBlockKeys + half.mask_row;
    if (row_ < rows) seen.low = masks[row_ / half.heads];
    if (row_ + 8 < rows) seen.high = masks[(row_ + 8) / half.heads];
    return seen;
  }

  __device__ void DoTile(const Ticket& ticket, int blocks) {
    const float scale = ticket.problem.scale_log2;
    const int masked = max(1, static_cast<int>(Uniform(static_cast<uint32_t>(ticket.masked))));
    RowState state;
    Out out = {};
    Weights weights;
    const bool with_care = First(ticket, scale, state, out, weights);
    const auto careful =
        static_cast<int>(Uniform(static_cast<uint32_t>(with_care ? blocks : masked)));
    Steps<true>(ticket, careful - 1, masked - 1, scale, state, out, weights);
    Steps<false>(ticket, blocks - careful, 0, scale, state, out, weights);
    Arrive(SharedAddress(&control_.queries_empty[half_]));  // each thread has read some of them
    OldRows old = {};
    if (ticket.state < 0) {  // on their way while the last values are added
      old = LookAtRows(ticket.problem, ticket.tile.half[half_], row_);
    }
    Wait(SharedAddress(&control_.values_full[values_.stage]), values_.parity);
    Pin(out);
    Pin(weights);
    FenceProducts();
    AddBlock<T>(out, weights, ValuesAtHand());
    CommitProducts();
    WaitForProducts();
    Pin(out);
    Pin(weights);
    Free(control_.values_empty[values_.stage]);
    values_.Next();
    End(ticket, old, state, out);
  }

  // Whether a score of the half may pass kScoreMax, or f32's range on the way to it.
  __device__ bool Careful(const Ticket& ticket, float scale) const {
    // Not by half_, which then would not stay uniform in the loops.
    const int half = static_cast<int>(threadIdx.x / kGroupThreads) - 1;
    const uint32_t from = SharedAddress(&control_) - Shape::kControlAt + half * Shape::kKeyBytes +
                          threadIdx.x % kGroupThreads * 16;
    const float key_size = __uint_as_float(work_.key_sizes[ticket.tile.problem]);
    uint32_t largest = 0;  // magnitude of 16 bits, in the upper half
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      uint32_t q[4];
      LoadShared16(from + i * kGroupThreads * 16, q);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        largest = max(largest, max(q[j] & 0x7fffffffu, (q[j] << 16) & 0x7fffffffu));
      }
    }
    const float size = kMayOverflow<T>
                           ? __uint_as_float(largest & 0xffff0000u)
                           : __half2float(__ushort_as_half(static_cast<uint16_t>(largest >> 16)));
    // Also if that is NaN.
    return AnyOfGroup(!(size * (key_size * (scale * kDim)) <= kScoreMax), kGroupBarriers + half);
  }

  __device__ uint64_t KeysAtHand() const {
    return At(keys_at_, keys_.stage * Shape::kKeyBytes);
  }
  __device__ uint64_t ValuesAtHand() const {
    return At(values_at_, values_.stage * Shape::kValueBytes);
  }
  __device__ static uint64_t At(uint64_t first, uint32_t bytes) {
    const uint32_t low = static_cast<uint32_t>(first) + (bytes >> 4);
    return (first & 0xffffffff00000000ull) | Uniform(low);
  }

  // Scores and weights of the first block, as if it were seen in part. Whether the others need
  // care.
  __device__ bool First(const Ticket& ticket, float scale, RowState& state, Out& out,
                        Weights& weights) {
    float s[8][4];
    Wait(SharedAddress(&control_.keys_full[keys_.stage]), keys_.parity);
    const Seen seen = Look(ticket);
    const int half = static_cast<int>(threadIdx.x / kGroupThreads) - 1;
    AwaitTurn(half);
    FenceProducts();
    ScoreBlock<T, kDim>(s, queries_, KeysAtHand());
    CommitProducts();
    PassTurn(half);
    const bool with_care = Careful(ticket, scale);  // meanwhile
    WaitForProducts();
    Pin(s);
    Free(control_.keys_empty[keys_.stage]);
    keys_.Next();
    MaskScores<8>(s, seen.low & seen.existing, seen.high & seen.existing, lane_);
    float step[2];
    float shrink[2];
    SoftenExactly<T>(s, scale, state, out, step, weights, shrink);
    state.sum[0] = step[0];
    state.sum[1] = step[1];
    return with_care;
  }

  // Each adds the values of the block before and scores its own in one group of products, so that
  // the matrix units run through; the other warpgroups' products run while this one's weights are
  // made.
  // kMasked: with care, and the first `looked_at` are seen in part.
  template <bool kMasked>
  __device__ void Steps(const Ticket& ticket, int count, int looked_at, float scale,
                        RowState& state, Out& out, Weights& weights) {
    for (int i = 0; i < count; ++i) {
      float s[8][4];
      Wait(SharedAddress(&control_.keys_full[keys_.stage]), keys_.parity);
      Seen seen = {~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}};
      if (kMasked && i < looked_at) seen = Look(ticket);
      Wait(SharedAddress(&control_.values_full[values_.stage]), values_.parity);
      Pin(out);
      Pin(weights);
      AwaitTurn();
      FenceProducts();
      AddBlock<T>(out, weights, ValuesAtHand());
      ScoreBlock<T, kDim>(s, queries_, KeysAtHand());
      CommitProducts();
      PassTurn();
      WaitForProducts();
      Pin(s);
      Pin(out);
      Pin(weights);
      Free(control_.values_empty[values_.stage]);
      values_.Next();
      Free(control_.keys_empty[keys_.stage]);
      keys_.Next();
      if constexpr (kMasked) {
        MaskScores<8>(s, seen.low & seen.existing, seen.high & seen.existing, lane_);
        float step[2];
        float shrink[2];
        SoftenExactly<T>(s, scale, state, out, step, weights, shrink);
        state.sum[0] += step[0];
        state.sum[1] += step[1];
      } else {
        SoftenBlock<T>(s, scale, state, out, weights);
      }
    }
  }

  __device__ void End(const Ticket& ticket, const OldRows& old, const RowState& state,
                      const Out& out) {
    const Half& half = ticket.tile.half[half_];
    const float whole[2] = {SumOfRow(state.sum[0]), SumOfRow(state.sum[1])};
    if (ticket.state < 0) {
      GiveRows<kDim <= kBoxedDimMax>(ticket.problem, old, lane_, state.max, whole, out);
      return;
    }
    int rows = 0;
    int base = 0;
#pragma unroll
    for (int h = 0; h < Shape::kHalves; ++h) {
      const Half& other = ticket.tile.half[h];
      if (h == half_) base = rows;
      rows += other.tokens * other.heads;
    }
    KeepRows<kDim <= kBoxedDimMax>(ticket.problem, half, work_.states + ticket.state, rows, base,
                                   row_, lane_, state.max, whole, out);
  }

  const Work& work_;
  Control<Shape>& control_;
  const int half_;
  const uint64_t queries_;
  const uint64_t keys_at_;
  const uint64_t values_at_;
  const int lane_;
  const int row_;
  Ring<Shape::kKeyStages> keys_;
  Ring<Shape::kValueStages> values_;
  Ring<kSeenStages> seen_;
};

}  // namespace annulus::cuda::sm90
