#include "runtime/store/page_arena.h"

#include <string.h>

#include <algorithm>

#include "base/check.h"

namespace annulus {
namespace {

// A slab doubles the arena until it has this size: small contexts stay small, large ones have few.
constexpr size_t kSlabBytesMax = size_t{4} << 20;

}  // namespace

PageArena::~PageArena() {
  // explicit_bzero, since a compiler may leave out a memset of memory that is freed next.
  for (const Slab& slab : slabs_) explicit_bzero(slab.memory.get(), slab.size_bytes);
}

void PageArena::AddSlab() {
  const size_t held = slabs_.empty() ? 0 : slabs_.back().size_bytes;
  const size_t pages_max = std::max<size_t>(1, kSlabBytesMax / page_bytes_);
  const size_t pages = std::clamp<size_t>(2 * held / page_bytes_, 1, pages_max);
  const size_t bytes = pages * page_bytes_;
  slabs_.push_back({AllocateZeroedMemory(bytes), bytes});
  fresh_ = slabs_.back().memory.get();
  fresh_end_ = fresh_ + bytes;
}

std::byte* PageArena::Allocate() {
  ++pages_in_use_;
  if (!freed_.empty()) {
    std::byte* page = freed_.back();
    freed_.pop_back();
    return page;
  }
  if (fresh_ == fresh_end_) AddSlab();
  std::byte* page = fresh_;
  fresh_ += page_bytes_;
  return page;
}

void PageArena::Free(std::byte* page) {
  ANNULUS_CHECK(pages_in_use_ > 0);
  --pages_in_use_;
  memset(page, 0, page_bytes_);
  freed_.push_back(page);
}

}  // namespace annulus
