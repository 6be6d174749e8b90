// The first warpgroup of the sm_90a panel kernel: one warp takes tickets and looks up where their
// blocks lie, one copies keys and values, two copy queries.
#pragma once

#include <cstdint>

#include "attention/cuda/sm90/panel_shape.cuh"

namespace annulus::cuda::sm90 {

template <typename T>
__device__ inline void CopyWords(const T& from, T& to, int lane) {
  static_assert(sizeof(T) % 4 == 0);
  const auto* source = reinterpret_cast<const uint32_t*>(&from);
  auto* target = reinterpret_cast<uint32_t*>(&to);
  for (int i = lane; i < static_cast<int>(sizeof(T) / 4); i += 32) target[i] = source[i];
}

// The places of a segment's blocks, kChunk of them at a time: each of so many lanes has one.
template <typename Control>
class BlockWalk {
 public:
  static constexpr int kHalves = Control::Shape::kHalves;

  __device__ BlockWalk(const Work& work, const RowMaps& maps, const Ticket& ticket, int lane)
      : work_(work), maps_(maps), ticket_(ticket), lane_(lane) {
    if (lane >= min(ticket.blocks, kChunk)) return;
    walk_.Begin(work, ticket.run, ticket.run_at);
    walk_.Skip(lane);
    Look();
  }

  // Those of the blocks [at, at + kChunk), in a stage of `control`.
  __device__ void Publish(int at, int stage, Control& control) {
    at += lane_;
    if (lane_ < kChunk && at < ticket_.blocks) {
      const bool missing = page_.k == nullptr || page_.v == nullptr;
      if (missing) ReportMissing(work_, ticket_.tile, block_);
      const int64_t keys = ticket_.problem.kv_tokens - int64_t{block_} * kBlockKeys;
      const int32_t special = missing ? kNoPage : keys < kBlockKeys ? kShortMap : 0;
      auto& places = control.places[stage][lane_];
      places.k = PlaceOfRows(page_.k, page_.k_row_stride, special);
      if constexpr (Control::kValues) {
        places.v = PlaceOfRows(page_.v, page_.v_row_stride, special);
      }
      if (at < LookedAt(ticket_)) {
        const Cell<kHalves> cell = walk_.template Now<kHalves>();
        SeenBlock<kHalves>& seen = control.seen[stage][lane_];
        seen.block = cell.block;
#pragma unroll
        for (int h = 0; h < kHalves; ++h) seen.sees[h] = cell.sees[h];
      }
    }
    if (lane_ >= kChunk || at + kChunk >= ticket_.blocks) return;
    walk_.Skip(kChunk);
    Look();
  }

 private:
  __device__ void Look() {
    block_ = walk_.Block();
    page_ = *PageAt(ticket_.tile, ticket_.problem, block_);
  }

  __device__ BlockPlace PlaceOfRows(const void* rows, int stride, int32_t special) const {
    if (special != 0) return {{0, 0, 0}, special};
    const int map = MapOf(maps_, stride);
    return {PlaceOf(maps_, map, rows), map};
  }

  const Work& work_;
  const RowMaps& maps_;
  const Ticket& ticket_;
  const int lane_;
  Walk walk_;
  int block_ = 0;
  Page page_;
};

// All of a ticket's blocks, as soon as there is room for them.
template <typename Control>
__device__ inline void PublishBlocks(const Work& work, const RowMaps& maps, const Ticket& ticket,
                                     Control& control, Ring<2>& chunks, int lane) {
  BlockWalk<Control> walk(work, maps, ticket, lane);
  for (int at = 0; at < ticket.blocks; at += kChunk) {
    Wait(SharedAddress(&control.places_empty[chunks.stage]), chunks.parity ^ 1);
    walk.Publish(at, static_cast<int>(chunks.stage), control);
    Arrive(SharedAddress(&control.places_full[chunks.stage]));
    chunks.Next();
  }
}

// Puts segments [first, first + count) into tickets, each into one thread block's, shortly before
// it is done with the one before. A thread block that starts late, since other work had its
// multiprocessor, so finds nothing waiting for it. None is taken once it has taken `stay` blocks.
// Looking up a first block takes the time of several: so it is done while those of the ticket
// before are still to be copied.
template <typename Control>
__device__ inline void TakeTickets(const Work& work, const RowMaps& maps, int first, int count,
                                   int stay, Control& control, int lane) {
  Ring<2> ring;
  Ring<2> chunks;
  for (;;) {
    int number = count;
    if (lane == 0 && stay > 0) {
      number = static_cast<int>(atomicAdd(&work.counters[0], 1u));
      if (work.stop != nullptr && *work.stop) number = count;
    }
    number = __shfl_sync(~0u, number, 0);
    const bool end = number >= count;
    Wait(SharedAddress(&control.ticket_empty[ring.stage]), ring.parity ^ 1);
    Ticket& ticket = control.tickets[ring.stage];
    if (end) {
      if (lane == 0) ticket.blocks = -1;
    } else {
      const Segment& segment = work.segments[first + number];
      const Tile& tile = work.tiles[segment.tile];
      stay -= segment.blocks;
      if (lane == 0) {
        ticket.blocks = segment.blocks;
        ticket.masked = min(max(tile.masked - segment.block_first, 0), segment.blocks);
        ticket.run = segment.run;
        ticket.run_at = segment.run_at;
        ticket.state = segment.state;
      }
      CopyWords(tile, ticket.tile, lane);
      CopyWords(work.problems[segment.problem], ticket.problem, lane);
    }
    Arrive(SharedAddress(&control.ticket_full[ring.stage]));
    if (end) break;
    __syncwarp();  // each lane has written a part of the ticket
    PublishBlocks(work, maps, ticket, control, chunks, lane);
    ring.Next();
    Wait(SharedAddress(&control.ticket_wanted), ring.stage ^ 1);
  }
  if (lane != 0) return;
  __threadfence();
  // The last one leaves the counters as they were.
  if (atomicInc(&work.counters[1], gridDim.x - 1) == gridDim.x - 1) work.counters[0] = 0;
}

// Loops over boxes: these warps have few registers.
template <int kDim>
inline constexpr int kUnrolled = kDim > 256 ? 1 : kDim / 64;

// The first column of a box of rows of `dim` columns: where that is less than kDim, the last boxes
// end where the row does, and repeat columns of those before.
template <int kDim>
__device__ inline int BoxColumn(int box, int dim) {
  return kDim <= kBoxedDimMax ? min(64 * box, dim - 64) : 64 * box;
}

template <int kDim>
__device__ inline void CopyBoxes(uint32_t to, const CUtensorMap* map, Place place, int dim,
                                 uint32_t barrier) {
#pragma unroll(kUnrolled <kDim>)
  for (int box = 0; box < kDim / 64; ++box) {
    CopyBox(to + box * kBoxBytes, map, place, barrier);
    place.column += BoxColumn<kDim>(box + 1, dim) - BoxColumn<kDim>(box, dim);
  }
}

// The places of blocks, as a warp that copies them reads them one after the other.
template <typename Control>
class PlacesAhead {
 public:
  __device__ explicit PlacesAhead(Control& control) : control_(control) {}

  // Before block `i` of a ticket.
  __device__ void Await(int i) {
    if (i % kChunk == 0) {
      Wait(SharedAddress(&control_.places_full[chunks_.stage]), chunks_.parity);
    }
  }
  // After it.
  __device__ void Free(int i, int blocks) {
    if (i % kChunk != kChunk - 1 && i != blocks - 1) return;
    Arrive(SharedAddress(&control_.places_empty[chunks_.stage]));
    chunks_.Next();
  }
  __device__ const auto& Of(int i) const { return control_.places[chunks_.stage][i % kChunk]; }
  __device__ const auto& SeenOf(int i) const { return control_.seen[chunks_.stage][i % kChunk]; }

 private:
  Control& control_;
  Ring<2> chunks_;
};

// Copies the rows of a block; completes on the barrier. `value`: 0 for keys, 1 for values.
template <int kDim>
__device__ inline void CopyBlock(const BlockPlace& at, const RowMaps& maps, const Ticket& ticket,
                                 int value, uint32_t to, uint32_t barrier) {
  if (at.map == kNoPage) return Arrive(barrier);
  const CUtensorMap* map = &maps.map[at.map];
  if (at.map == kShortMap) {
    map = static_cast<const CUtensorMap*>(ticket.problem.short_maps) + 2 * ticket.tile.kv_head +
          value;
    FenceMap(map);
  }
  ArriveExpecting(barrier, kDim / 64 * kBoxBytes);
  const Problem& problem = ticket.problem;
  CopyBoxes<kDim>(to, map, at.place, value == 0 ? problem.head_dim : problem.v_head_dim, barrier);
}

template <typename Shape>
__device__ inline void CopyBlocks(const RowMaps& maps, Control<Shape>& control, uint32_t shared) {
  const bool elected = Elect();
  Ring<2> tickets;
  Ring<Shape::kKeyStages> keys;
  Ring<Shape::kValueStages> values;
  Ring<kSeenStages> seen;
  PlacesAhead<Control<Shape>> places(control);
  for (;;) {
    Wait(SharedAddress(&control.ticket_full[tickets.stage]), tickets.parity);
    const Ticket& ticket = control.tickets[tickets.stage];
    const int blocks = ticket.blocks;
    if (blocks < 0) return;
    const int looked_at = LookedAt(ticket);
    for (int i = 0; i < blocks; ++i) {
      if (elected && i == max(0, blocks - kWantedBlocks))
        Arrive(SharedAddress(&control.ticket_wanted));
      places.Await(i);
      if (i < looked_at) {
        Wait(SharedAddress(&control.seen_empty[seen.stage]), seen.parity ^ 1);
        if (elected) control.staged[seen.stage] = places.SeenOf(i);
        seen.Next();
      }
      // Places are read before the waits, after which there is no time to lose.
      const BlockPlace k = places.Of(i).k;
      Wait(SharedAddress(&control.keys_empty[keys.stage]), keys.parity ^ 1);
      if (elected) {
        CopyBlock<Shape::kHeadDim>(k, maps, ticket, 0,
                                   shared + Shape::kKeysAt + keys.stage * Shape::kKeyBytes,
                                   SharedAddress(&control.keys_full[keys.stage]));
      }
      keys.Next();
      const BlockPlace v = places.Of(i).v;
      places.Free(i, blocks);
      Wait(SharedAddress(&control.values_empty[values.stage]), values.parity ^ 1);
      if (elected) {
        CopyBlock<Shape::kValueDim>(v, maps, ticket, 1,
                                    shared + Shape::kValuesAt + values.stage * Shape::kValueBytes,
                                    SharedAddress(&control.values_full[values.stage]));
      }
      values.Next();
    }
    Arrive(SharedAddress(&control.ticket_empty[tickets.stage]));
    tickets.Next();
  }
}

// The rows of a half, as matrix units read them; rows that it has not are zeros, and so are columns
// that a box repeats. `thread`: of 32 · kQueryWarps.
template <int kDim>
__device__ inline void CopyHalf(const Problem& problem, const Half& half, uint32_t to, int thread) {
  constexpr int kChunks = 8;  // of 16 bytes, by row of a box
  constexpr int kStep = 32 * kQueryWarps / kChunks;
  const int chunk = thread % kChunks;
  const int heads = max(half.heads, 1);
  int row = thread / kChunks;
  int token = row / heads;
  int head = row % heads;
  const auto* q = static_cast<const uint16_t*>(problem.q) +
                  half.row_first * problem.q_token_stride +
                  half.head_first * problem.q_head_stride + chunk * 8;
  for (; row < kPanelRows; row += kStep) {
    const bool there = token < half.tokens;
    const auto* from = q;
    if (there) from += token * problem.q_token_stride + head * problem.q_head_stride;
    const uint32_t at = to + row * 128 + (chunk ^ row % 8) * 16;
#pragma unroll(kUnrolled <kDim>)
    for (int box = 0; box < kDim / 64; ++box) {
      const int column = BoxColumn<kDim>(box, problem.head_dim);
      const bool own = kDim > kBoxedDimMax || column + chunk * 8 >= box * 64;
      CopyAsync16(at + box * kBoxBytes, from + column, there && own);
    }
    for (head += kStep; head >= heads; head -= heads) ++token;
  }
}

// Asks the L2 for the rows of a half: they will be copied as soon as the half before is done.
template <int kDim>
__device__ inline void PrefetchHalf(const Problem& problem, const Half& half, int row) {
  constexpr int kLine = 128;
  if (row >= half.tokens * half.heads) return;
  const auto* from = static_cast<const uint16_t*>(problem.q) +
                     (half.row_first + row / half.heads) * problem.q_token_stride +
                     (half.head_first + row % half.heads) * problem.q_head_stride;
#pragma unroll(kUnrolled <kDim>)
  for (int at = 0; at < (kDim <= kBoxedDimMax ? problem.head_dim : kDim) * 2; at += kLine) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at / 2));
  }
}

// A half of 64 tokens of one head is a box; others are copied by threads.
template <typename Control>
__device__ inline void CopyQueries(const RowMaps& maps, Control& control, uint32_t shared,
                                   int thread) {
  using Shape = typename Control::Shape;
  constexpr int kDim = Shape::kHeadDim;
  static_assert(32 * kQueryWarps == kPanelRows);
  Ring<2> tickets;
  Ring<1> queries;
  for (;;) {
    Wait(SharedAddress(&control.ticket_full[tickets.stage]), tickets.parity);
    const Ticket& ticket = control.tickets[tickets.stage];
    const Problem& problem = ticket.problem;
    if (ticket.blocks < 0) return;
    for (int h = 0; h < Shape::kHalves; ++h) {
      PrefetchHalf<kDim>(problem, ticket.tile.half[h], thread);
    }
    const int map = MapOf(maps, problem.q_token_stride);
    for (int h = 0; h < Shape::kHalves; ++h) {
      const Half& half = ticket.tile.half[h];
      const uint32_t to = shared + h * Shape::kKeyBytes;
      const uint32_t full = SharedAddress(&control.queries_full[h]);
      Wait(SharedAddress(&control.queries_empty[h]), queries.parity ^ 1);
      const bool narrow = kDim <= kBoxedDimMax && problem.head_dim != kDim;
      if (map < 0 || half.tokens != kPanelRows || narrow) {
        CopyHalf<kDim>(problem, half, to, thread);
        CommitCopies();
        WaitForCopies<0>();
        FenceSharedStores();
        Arrive(full);
      } else if (thread != 0) {
        Arrive(full);
      } else {
        ArriveExpecting(full, Shape::kKeyBytes);
        CopyBoxes<kDim>(to, &maps.map[map],
                        PlaceOf(maps, map,
                                static_cast<const uint16_t*>(problem.q) +
                                    half.row_first * problem.q_token_stride +
                                    half.head_first * problem.q_head_stride),
                        kDim, full);
      }
    }
    Arrive(SharedAddress(&control.ticket_empty[tickets.stage]));
    tickets.Next();
    queries.Next();
  }
}

}  // namespace annulus::cuda::sm90
