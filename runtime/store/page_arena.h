// Pages of one size out of slabs, so that a million-token context costs hundreds of allocations and
// not a hundred thousand. Every page handed out is zero: memory comes zeroed from the system and is
// zeroed again when a page or the arena is given back, so that no KV outlives its context.
// Thread-compatible.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/memory.h"

namespace annulus {

class PageArena {
 public:
  explicit PageArena(size_t page_bytes) : page_bytes_(page_bytes) {}
  ~PageArena();
  PageArena(const PageArena&) = delete;
  PageArena& operator=(const PageArena&) = delete;

  // A zeroed page, 64-byte aligned.
  std::byte* Allocate();

  // Zeroes a page and keeps it for the next Allocate.
  void Free(std::byte* page);

  int64_t pages_in_use() const { return pages_in_use_; }

 private:
  struct Slab {
    Memory memory;
    size_t size_bytes;
  };

  void AddSlab();

  const size_t page_bytes_;
  std::vector<Slab> slabs_;
  std::vector<std::byte*> freed_;
  std::byte* fresh_ = nullptr;  // pages of the last slab never handed out: [fresh_, fresh_end_)
  std::byte* fresh_end_ = nullptr;
  int64_t pages_in_use_ = 0;
};

}  // namespace annulus
