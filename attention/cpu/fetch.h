// Asking for keys and values before they are needed (fetch_line.h).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "attention/cpu/fetch_line.h"
#include "attention/cpu/kernels.h"

namespace annulus::cpu {

// Values of a block that decode works on while they stay in L1 for several query rows.
inline constexpr int kValuesAtOnce = 16;

// Rows of keys or of values of one block.
class FetchedRows {
 public:
  FetchedRows() = default;
  static FetchedRows Keys(const TileShape& shape, const KeyBlock& block) {
    return {block.k, block.k_row_stride, shape.head_dim, block.keys, shape.kv_dtype};
  }
  static FetchedRows Values(const TileShape& shape, const KeyBlock& block) {
    return {block.v, block.v_row_stride, shape.v_head_dim, block.keys, shape.kv_dtype};
  }

  // Those of the rows [begin, end) that exist, into L2.
  ANNULUS_FETCH_INLINE void ToL2(int begin, int end) const {
    for (int r = begin; r < end && r < rows_; ++r) {
      RowToL2(data_ + static_cast<size_t>(r) * stride_bytes_, row_bytes_);
    }
  }

 private:
  FetchedRows(const std::byte* data, size_t stride, int dim, int rows, DType dtype)
      : data_(data),
        stride_bytes_(stride * SizeOf(dtype)),
        row_bytes_(static_cast<size_t>(dim) * SizeOf(dtype)),
        rows_(rows) {}

  const std::byte* data_ = nullptr;
  size_t stride_bytes_ = 0;
  size_t row_bytes_ = 0;
  int rows_ = 0;
};

// The block that comes next, fetched into L2 row by row while panels work on another, each for its
// part of the rows: all at once would wait for each other. Does nothing where no block comes next.
class BlockFetcher {
 public:
  BlockFetcher(const TileShape& shape, const KeyBlock* next, int panels) : panels_(panels) {
    if (next == nullptr) return;
    k_ = FetchedRows::Keys(shape, *next);
    v_ = FetchedRows::Values(shape, *next);
  }

  // From the next panel on.
  void NextPanel() { rows_before_ += kBlockKeys; }

  // While a panel works on keys [begin, end), and on that share of all dims of the values.
  ANNULUS_FETCH_INLINE void Keys(int begin, int end) const { k_.ToL2(Row(begin), Row(end)); }
  ANNULUS_FETCH_INLINE void Values(int begin, int end) const { v_.ToL2(Row(begin), Row(end)); }

 private:
  int Row(int row) const { return (rows_before_ + row) / panels_; }

  FetchedRows k_;
  FetchedRows v_;
  int panels_;
  int rows_before_ = 0;
};

// What decode reads next: the rows of a block's keys, those of its values, then the next block's.
// They are asked for while earlier ones are worked on, a row for a row, so that memory answers all
// the time and not only while the kernel waits for it.
//
// Where one group of query rows reads the block, rows are asked for kAheadBytes before they are
// needed, and the next block's first ones earlier, too, where that lies elsewhere: nothing has
// begun to read ahead there. Where several groups read it, the later ones from the caches, they
// ask for the next block instead, each for a part of its rows. Behind the last block they ask for
// that one again.
class StreamFetcher {
 public:
  StreamFetcher() = default;
  StreamFetcher(const TileShape& shape, const KeyBlock& block, const KeyBlock* next, int groups)
      : StreamFetcher(shape, block, next == nullptr ? block : *next, groups) {}

  // From the next group of query rows on.
  void NextGroup() {
    const auto rows = static_cast<uintptr_t>(kBlockKeys / groups_);
    keys_.first += rows * keys_.stride;
    values_.first += rows * values_.stride;
  }

  // Before the work on a row of the block. Rows that do not exist may be asked for: no harm.
  ANNULUS_FETCH_INLINE void Key(int key) const { Ask(keys_, key); }
  ANNULUS_FETCH_INLINE void Value(int key) const {
    Ask(values_, key);
    if (early_ == 0) return;
    const uintptr_t at = early_ + static_cast<uintptr_t>(key * kEarlyBytes);
    for (int i = 0; i < kEarlyBytes; i += kLineBytes) {
      LineToL2(reinterpret_cast<const void*>(at + static_cast<uintptr_t>(i)));
    }
  }

 private:
  static constexpr int kAheadBytes = 8 << 10;
  static constexpr int kEarlyBytes = kAheadBytes / kBlockKeys;  // for each row of values

  // Rows to ask for: number r at first + r · stride, from `split` on at second + r · second_stride.
  // Addresses, since not all of them are those of something.
  struct Rows {
    uintptr_t first = 0;
    uintptr_t stride = 0;
    int split = kBlockKeys;
    uintptr_t second = 0;
    uintptr_t second_stride = 0;

    uintptr_t At(int row) const {
      const auto r = static_cast<uintptr_t>(row);
      return row < split ? first + r * stride : second + r * second_stride;
    }
  };

  // A tensor's rows in a block.
  struct Lie {
    uintptr_t data;
    uintptr_t stride;
  };
  // Those `rows` rows behind each of `now`, `then` being what follows it.
  static Rows Behind(Lie now, int rows, Lie then) {
    const int split = kBlockKeys - rows;
    return {now.data + static_cast<uintptr_t>(rows) * now.stride, now.stride, split,
            then.data - static_cast<uintptr_t>(split) * then.stride, then.stride};
  }

  StreamFetcher(const TileShape& shape, const KeyBlock& block, const KeyBlock& next, int groups)
      : groups_(groups) {
    const size_t size = SizeOf(shape.kv_dtype);
    const auto lie = [size](const std::byte* data, size_t stride) {
      return Lie{reinterpret_cast<uintptr_t>(data), stride * size};
    };
    const Lie k = lie(block.k, block.k_row_stride), v = lie(block.v, block.v_row_stride);
    const Lie next_k = lie(next.k, next.k_row_stride), next_v = lie(next.v, next.v_row_stride);
    const size_t row_bytes = static_cast<size_t>(std::max(shape.head_dim, shape.v_head_dim)) * size;
    lines_ = static_cast<int>((row_bytes + kLineBytes - 1) / kLineBytes);
    if (groups > 1) {
      keys_ = {next_k.data, next_k.stride};
      values_ = {next_v.data, next_v.stride};
      return;
    }
    const int rows = static_cast<int>(std::clamp<size_t>(kAheadBytes / row_bytes, 1, kBlockKeys));
    keys_ = Behind(k, rows, v);
    values_ = Behind(v, rows, next_k);
    const bool adjoins = v.data + kBlockKeys * v.stride == next_k.data;
    const bool together = next.k_row_stride == static_cast<size_t>(shape.head_dim);
    if (!adjoins && together) early_ = next_k.data;
  }

  ANNULUS_FETCH_INLINE void Ask(const Rows& rows, int row) const {
    const auto line = [](uintptr_t at, int i) __attribute__((always_inline)) {
      return reinterpret_cast<const void*>(at + static_cast<uintptr_t>(i * kLineBytes));
    };
    if (groups_ == 1) {
      const uintptr_t at = rows.At(row);
      for (int i = 0; i < lines_; ++i) LineToL1(line(at, i));
    } else if (row % groups_ == 0) {
      const uintptr_t at = rows.At(row / groups_);
      for (int i = 0; i < lines_; ++i) LineToL2(line(at, i));
    }
  }

  Rows keys_;            // while keys are worked on
  Rows values_;          // while values are
  uintptr_t early_ = 0;  // of the next keys; 0: they are not asked for early
  int lines_ = 0;        // of a row
  int groups_ = 1;
};

// Reads a byte of each line of a row, so that what comes next finds the row in L1 in whatever order
// it reads: memory is fast only where it is read in its order, which prefetching alone does not
// mend.
inline void Touch(const void* row, size_t bytes) {
  const auto* lines = static_cast<const volatile char*>(row);
  for (size_t at = 0; at < bytes; at += kLineBytes) static_cast<void>(lines[at]);
}

}  // namespace annulus::cpu
