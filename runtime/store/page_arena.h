// Pages of one size in one memory space, out of slabs, so that a million-token context costs
// hundreds of allocations and not a hundred thousand. A page lives as long as somebody holds a
// PageRef of it: contexts that were forked hold pages together. Every page handed out is zero:
// memory comes zeroed from the system and is zeroed again when its last holder goes, so that no KV
// outlives its context; a slab without pages in use goes back to the system. Thread-compatible. The
// arena outlives the references to its pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/memory_space.h"
#include "runtime/store/byte_count.h"

namespace annulus {

class PageArena;
struct PageSlab;  // private to the arena

// Zeroed memory of one space for the slabs of arenas that grow together. Small pieces are cut out
// of chunks that grow up to a huge page: the slabs of a short context are none by themselves, and
// attending to it would spend much of its time on finding pages. A chunk goes back with its last
// piece. Thread-compatible.
class SlabMemory {
 public:
  // `space` outlives this.
  explicit SlabMemory(MemorySpace& space) : space_(space) {}

  // RESOURCE_EXHAUSTED where the space has no room for it.
  absl::StatusOr<Buffer> Allocate(size_t size_bytes);
  // So much will be asked for next, in all: it had better lie together.
  void Expect(size_t size_bytes) { expected_bytes_ = size_bytes; }
  MemorySpace& space() const { return space_; }

 private:
  MemorySpace& space_;
  Buffer chunk_;
  size_t used_bytes_ = 0;  // of the chunk
  size_t total_bytes_ = 0;
  size_t expected_bytes_ = 0;
};

struct Page {
  std::byte* data = nullptr;  // 64-byte aligned, in the arena's space
  uint32_t crc = 0;           // of the whole page, if it is sealed
  bool sealed = false;

 private:
  friend class PageArena;
  friend class PageRef;
  uint32_t holders_ = 0;
  PageSlab* slab_ = nullptr;
};

// A holder of a page, or of none. Copying adds a holder.
class PageRef {
 public:
  PageRef() = default;
  PageRef(const PageRef& other) : page_(other.page_) {
    if (page_ != nullptr) ++page_->holders_;
  }
  PageRef(PageRef&& other) noexcept : page_(std::exchange(other.page_, nullptr)) {}
  PageRef& operator=(PageRef other) noexcept {
    std::swap(page_, other.page_);
    return *this;
  }
  ~PageRef();

  Page* get() const { return page_; }
  Page* operator->() const { return page_; }
  explicit operator bool() const { return page_ != nullptr; }
  bool shared() const { return page_ != nullptr && page_->holders_ > 1; }

 private:
  friend class PageArena;
  explicit PageRef(Page* page) : page_(page) { page_->holders_ = 1; }

  Page* page_ = nullptr;
};

class PageArena {
 public:
  // Counts the bytes of the pages in use in `bytes_in_use` too, which outlives this, as `memory`
  // does.
  PageArena(size_t page_bytes, SlabMemory* memory, ByteCount* bytes_in_use);
  ~PageArena();
  PageArena(const PageArena&) = delete;
  PageArena& operator=(const PageArena&) = delete;

  // A zeroed page; `counted`: its bytes are in bytes_in_use already. RESOURCE_EXHAUSTED where the
  // space has no room for it.
  absl::StatusOr<PageRef> Allocate(bool counted = false);
  // So many will be asked for next: those that need a new slab get one.
  void Expect(size_t pages) { expected_ = pages; }

  int64_t pages_in_use() const { return pages_in_use_; }
  size_t page_bytes() const { return page_bytes_; }
  MemorySpace& space() const { return memory_->space(); }

 private:
  friend class PageRef;

  absl::Status AddSlab();
  static void Free(Page* page);

  const size_t page_bytes_;
  SlabMemory* const memory_;
  ByteCount* const bytes_in_use_;
  std::vector<std::unique_ptr<PageSlab>> slabs_;
  std::vector<PageSlab*> with_room_;  // those with a free page
  int64_t pages_in_use_ = 0;
  size_t expected_ = 0;
};

inline PageRef::~PageRef() {
  if (page_ != nullptr && --page_->holders_ == 0) PageArena::Free(page_);
}

}  // namespace annulus
