#include "runtime/store/page_arena.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace annulus {
namespace {

// A slab adds a quarter to the arena, or doubles one of few pages, until it has this size: huge
// pages come whole, so that what a slab has beyond its pages in use is memory that nobody counts.
constexpr size_t kSlabBytesMax = size_t{4} << 20;
constexpr int64_t kDoubledPagesMax = 8;
constexpr size_t kChunkBytesMax = size_t{2} << 20;  // from here on memory is in huge pages
constexpr size_t kAheadBytesMax = size_t{8} << 20;  // of a chunk for what is expected
constexpr size_t kAlignment = 64;

}  // namespace

struct PageSlab {
  PageArena* arena = nullptr;
  Buffer memory;
  std::vector<Page> pages;
  std::vector<Page*> free;
};

absl::StatusOr<Buffer> SlabMemory::Allocate(size_t size_bytes) {
  size_bytes = (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (size_bytes >= kChunkBytesMax) return space_.AllocateZeroed(size_bytes);
  if (size_bytes > chunk_.size() - used_bytes_) {
    // At most as much again as there is, so that a context of one block takes little.
    const size_t ahead_bytes = std::min(expected_bytes_, kAheadBytesMax);
    const size_t chunk_bytes =
        std::max(std::clamp(total_bytes_, size_bytes, kChunkBytesMax), ahead_bytes);
    ANNULUS_ASSIGN_OR_RETURN(chunk_, space_.AllocateZeroed(chunk_bytes));
    expected_bytes_ -= ahead_bytes;
    used_bytes_ = 0;
    total_bytes_ += chunk_bytes;
  }
  const size_t at = std::exchange(used_bytes_, used_bytes_ + size_bytes);
  return chunk_.Part(at, size_bytes);
}

PageArena::PageArena(size_t page_bytes, SlabMemory* memory, ByteCount* bytes_in_use)
    : page_bytes_(page_bytes), memory_(memory), bytes_in_use_(bytes_in_use) {}

PageArena::~PageArena() {
  ANNULUS_CHECK(pages_in_use_ == 0);
}

absl::Status PageArena::AddSlab() {
  // Nothing is free, so that this is all there is.
  const auto held = static_cast<size_t>(pages_in_use_);
  const size_t more = pages_in_use_ <= kDoubledPagesMax ? held : held / 4;
  const size_t pages_max = std::max<size_t>(1, kSlabBytesMax / page_bytes_);
  const size_t pages = std::clamp<size_t>(std::max(more, expected_), 1, pages_max);
  auto slab = std::make_unique<PageSlab>();
  slab->arena = this;
  ANNULUS_ASSIGN_OR_RETURN(slab->memory, memory_->Allocate(pages * page_bytes_));
  slab->pages.resize(pages);
  slab->free.reserve(pages);
  for (size_t i = pages; i-- > 0;) {  // so that pages are handed out as they lie
    slab->pages[i].data = slab->memory.data() + i * page_bytes_;
    slab->pages[i].slab_ = slab.get();
    slab->free.push_back(&slab->pages[i]);
  }
  with_room_.push_back(slab.get());
  slabs_.push_back(std::move(slab));
  return absl::OkStatus();
}

absl::StatusOr<PageRef> PageArena::Allocate(bool counted) {
  if (with_room_.empty()) {
    ANNULUS_RETURN_IF_ERROR(AddSlab());
  }
  expected_ -= expected_ > 0 ? 1 : 0;
  PageSlab* slab = with_room_.back();
  Page* page = slab->free.back();
  slab->free.pop_back();
  if (slab->free.empty()) with_room_.pop_back();
  ++pages_in_use_;
  if (!counted) bytes_in_use_->Add(static_cast<int64_t>(page_bytes_));
  return PageRef(page);
}

void PageArena::Free(Page* page) {
  PageSlab* slab = page->slab_;
  PageArena& arena = *slab->arena;
  // A GPU that fails here is lost, and its memory with it.
  (void)arena.space().Zero(page->data, arena.page_bytes_);
  page->sealed = false;
  if (slab->free.empty()) arena.with_room_.push_back(slab);
  slab->free.push_back(page);
  --arena.pages_in_use_;
  arena.bytes_in_use_->Add(-static_cast<int64_t>(arena.page_bytes_));
  if (slab->free.size() < slab->pages.size()) return;
  std::erase(arena.with_room_, slab);
  std::erase_if(arena.slabs_, [slab](const auto& own) { return own.get() == slab; });
}

}  // namespace annulus
