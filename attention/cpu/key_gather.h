// Keys that lie scattered, put together: where one query sees few keys of each of many blocks, as
// with a list of single tokens, the rows of those keys are copied into blocks of their own, so that
// kernels compute what is seen and not what lies around it.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "annulus/buffer.h"
#include "annulus/dtype.h"
#include "attention/cpu/kernels.h"

namespace annulus::cpu {

class KeyGather {
 public:
  // `room` is kept by the caller, so that a warm thread allocates nothing.
  KeyGather(const TileShape& shape, Buffer* room)
      : k_bytes_(static_cast<size_t>(shape.head_dim) * SizeOf(shape.kv_dtype)),
        v_bytes_(static_cast<size_t>(shape.v_head_dim) * SizeOf(shape.kv_dtype)),
        k_dim_(static_cast<size_t>(shape.head_dim)),
        v_dim_(static_cast<size_t>(shape.v_head_dim)),
        room_(*room) {}

  // The keys of the block that its first query sees. Masks tell of keys that do not exist, too: a
  // block may end early.
  static uint64_t Seen(const KeyBlock& block) {
    const uint64_t exist = ~uint64_t{0} >> (kBlockKeys - block.keys);
    return block.masks == nullptr ? exist : *block.masks & exist;
  }

  bool Fits(uint64_t mask) const { return keys_ + std::popcount(mask) <= kBlockKeys; }

  // REQUIRES: Fits(mask), of keys that exist.
  void Add(const KeyBlock& block, uint64_t mask) {
    const size_t bytes = kBlockKeys * (k_bytes_ + v_bytes_);
    if (room_.size() < bytes) room_ = Buffer(bytes);
    for (; mask != 0; mask &= mask - 1, ++keys_) {
      const auto row = static_cast<size_t>(std::countr_zero(mask));
      const auto at = static_cast<size_t>(keys_);
      std::memcpy(K() + at * k_bytes_, block.k + row * block.k_row_stride * k_bytes_ / k_dim_,
                  k_bytes_);
      std::memcpy(V() + at * v_bytes_, block.v + row * block.v_row_stride * v_bytes_ / v_dim_,
                  v_bytes_);
    }
  }

  bool empty() const { return keys_ == 0; }

  // What has been added since the last call; stays as it is until the next Add.
  KeyBlock Take() {
    const KeyBlock block{K(), V(), k_dim_, v_dim_, keys_, nullptr};
    keys_ = 0;
    return block;
  }

 private:
  std::byte* K() const { return room_.data(); }
  std::byte* V() const { return room_.data() + kBlockKeys * k_bytes_; }

  const size_t k_bytes_;  // of a row
  const size_t v_bytes_;
  const size_t k_dim_;
  const size_t v_dim_;
  Buffer& room_;
  int keys_ = 0;
};

}  // namespace annulus::cpu
