#include "attention/cpu/row_gather.h"

#include <algorithm>
#include <cmath>

#include "attention/backend.h"

namespace annulus::cpu {

RowGather::RowGather(const KernelSet& kernels, const Tile& tile, const SegmentState& state,
                     GatherRoom* room)
    : kernels_(kernels), tile_(tile), state_(state), room_(*room), shape_(tile.shape) {
  const auto rows = static_cast<size_t>(tile.shape.rows());
  std::fill_n(state.max, rows, kNoScore);
  std::fill_n(state.sum, rows, 0.0f);
  std::fill_n(state.out, rows * static_cast<size_t>(tile.shape.v_head_dim), 0.0f);
  shape_.tokens = 0;
  room_.tokens.clear();
}

void RowGather::Ask(int64_t block, int keys) {
  const uint64_t exist = ~uint64_t{0} >> (kBlockKeys - keys);
  const int64_t begin = tile_.position;
  const int64_t end = begin + tile_.shape.tokens;
  room_.asked.clear();
  room_.masks.clear();
  for (int64_t at = begin; at < end;) {
    const int64_t stop = std::min(end, (at / kBlockTokens + 1) * kBlockTokens);
    uint64_t cell[kBlockTokens];
    tile_.pattern->CellMask(tile_.kv_head, TokenRange{at, stop}, block, cell);
    for (; at < stop; ++at) {
      const uint64_t mask = cell[at % kBlockTokens] & exist;
      if (mask == 0) continue;
      room_.asked.push_back(static_cast<int>(at - begin));
      room_.masks.push_back(mask);
    }
  }
}

bool RowGather::Take() {
  room_.tokens = room_.asked;
  shape_.tokens = static_cast<int>(room_.tokens.size());
  const bool few = shape_.rows() <= kernels_.stream_rows_max;
  kernel_ = few ? &kernels_.stream : &kernels_.panel;
  const TileFloats floats = kernel_->floats(shape_);
  memory_ = room_.tile.Prepare(floats);
  const TensorView& from = tile_.args->q;
  float* q = AtLeast(static_cast<size_t>(shape_.head_dim), &room_.q);
  int row = 0;
  for (const int token : room_.tokens) {
    for (int head = 0; head < shape_.heads; ++head, ++row) {
      Convert(from.Row(tile_.row_first + token, tile_.head_first + head), from.dtype, q,
              DType::kF32, shape_.head_dim);
      kernel_->set_query(shape_, memory_, row, q);
    }
  }
  return kernels_.takes == nullptr || kernels_.takes(shape_, floats, memory_);
}

void RowGather::Give() {
  if (shape_.tokens == 0) return;
  const int dim = shape_.v_head_dim;
  float* out = AtLeast(static_cast<size_t>(shape_.rows()) * static_cast<size_t>(dim), &room_.out);
  kernel_->get_out(shape_, memory_, out);
  for (int row = 0; row < shape_.rows(); ++row, out += dim) {
    if (memory_.sum[row] == 0) continue;  // no key was seen
    const int to =
        room_.tokens[static_cast<size_t>(row / shape_.heads)] * shape_.heads + row % shape_.heads;
    const float max = std::max(state_.max[to], memory_.max[row]);
    const float old = std::exp2(state_.max[to] - max);
    const float added = std::exp2(memory_.max[row] - max);
    state_.max[to] = max;
    state_.sum[to] = old * state_.sum[to] + added * memory_.sum[row];
    float* merged = state_.out + static_cast<ptrdiff_t>(to) * dim;
    for (int c = 0; c < dim; ++c) merged[c] = old * merged[c] + added * out[c];
  }
  shape_.tokens = 0;
}

bool RowGather::Attend(int64_t block, KeyBlock keys, const KeyBlock* next) {
  Ask(block, keys.keys);
  if (room_.asked.empty()) return true;
  if (room_.asked != room_.tokens || shape_.tokens == 0) {
    Give();
    if (!Take()) return false;
  }
  const uint64_t exist = ~uint64_t{0} >> (kBlockKeys - keys.keys);
  const bool full = std::all_of(room_.masks.begin(), room_.masks.end(),
                                [exist](uint64_t mask) { return mask == exist; });
  keys.masks = full ? nullptr : room_.masks.data();
  kernel_->attend(shape_, memory_, keys, next);
  return true;
}

}  // namespace annulus::cpu
