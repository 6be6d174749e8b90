// Where a backend reads keys and values from: pages. A page is one block of one KV head of one
// layer: K [≤64, head_dim] and V [≤64, v_head_dim], each with a row stride, so that the same view
// covers a paged store (rows contiguous), an NHD tensor (rows heads·dim apart) and an MLA latent
// cache (V is K's first dims: the same memory).
// The table is by (kv head, absolute block); a block the shard does not hold has null pointers.
// KvTable is built once per context, layer and length, and extended as the context grows. Copies
// share what they have in common until one of them is written (CowArray): a fork copies no table.
// Thread-compatible: read by many while nobody writes.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "annulus/tensor.h"
#include "attention/block_set.h"
#include "base/cow_array.h"
#include "base/memory_kind.h"

namespace annulus {

// Row strides are in elements, between consecutive tokens. They belong to the page, so that one
// table can hold pages of a strided tensor beside pages that arrived from another rank.
struct KvPage {
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  int32_t k_row_stride = 0;
  int32_t v_row_stride = 0;
};

class KvTable {
 public:
  KvTable() = default;
  // KV heads [kv_head_first, kv_head_first + kv_heads), blocks [0, blocks).
  KvTable(DType dtype, int kv_head_first, int kv_heads, int head_dim, int v_head_dim,
          int64_t blocks)
      : dtype_(dtype),
        kv_head_first_(kv_head_first),
        kv_heads_(kv_heads),
        head_dim_(head_dim),
        v_head_dim_(v_head_dim),
        blocks_(blocks),
        pages_(static_cast<size_t>(kv_heads * blocks)) {}

  // All blocks of an NHD tensor pair: k [tokens, kv_heads, head_dim], v [tokens, kv_heads,
  // v_head_dim] with equal tokens, heads and dtype; token 0 is absolute position 0.
  static KvTable FromTensors(const TensorView& k, const TensorView& v);

  // Makes room for a context that grew.
  void Extend(int64_t blocks) {
    if (blocks > blocks_) Resize(blocks);
  }
  // Forgets the blocks from `blocks` on.
  void Cut(int64_t blocks) {
    if (blocks < blocks_) Resize(blocks);
  }

  void Set(int kv_head, int64_t block, KvPage page) {
    pages_.Mutable(Index(kv_head, block)) = page;
    stamp_.Clear();
  }
  const KvPage& page(int kv_head, int64_t block) const { return pages_[Index(kv_head, block)]; }

  // Tables with equal stamps hold the same pages: one for each content that a table ever had, never
  // 0. What is derived from a table can be kept under it.
  uint64_t stamp() const;

  // Where the pages lie, all of them; host memory unless it is said.
  void set_memory(MemoryKind memory) {
    memory_ = memory;
    stamp_.Clear();
  }
  MemoryKind memory() const { return memory_; }
  DType dtype() const { return dtype_; }
  int kv_head_first() const { return kv_head_first_; }
  int kv_heads() const { return kv_heads_; }
  int head_dim() const { return head_dim_; }
  int v_head_dim() const { return v_head_dim_; }
  int64_t blocks() const { return blocks_; }

 private:
  void Resize(int64_t blocks) {
    blocks_ = blocks;
    pages_.Resize(static_cast<size_t>(kv_heads_ * blocks));
    stamp_.Clear();
  }

  // Given when somebody asks, which many may do at once.
  class Stamp {
   public:
    Stamp() = default;
    Stamp(const Stamp& other) : value_(other.value_.load()) {}
    Stamp& operator=(const Stamp& other) {
      value_.store(other.value_.load());
      return *this;
    }
    void Clear() { value_.store(0, std::memory_order_relaxed); }
    uint64_t Get() const;

   private:
    mutable std::atomic<uint64_t> value_{0};  // 0: not given
  };

  size_t Index(int kv_head, int64_t block) const {
    return static_cast<size_t>(block * kv_heads_ + (kv_head - kv_head_first_));
  }

  DType dtype_ = DType::kF32;
  MemoryKind memory_ = MemoryKind::kHost;
  int kv_head_first_ = 0;
  int kv_heads_ = 0;
  int head_dim_ = 0;
  int v_head_dim_ = 0;
  int64_t blocks_ = 0;
  CowArray<KvPage> pages_;
  Stamp stamp_;
};

}  // namespace annulus
