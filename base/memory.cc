#include "base/memory.h"

#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <new>
#include <unordered_map>
#include <utility>
#include <vector>

namespace annulus {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr size_t kHugePageBytes = size_t{2} << 20;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kKeeps = false;  // so that use after the end of its life is found
#else
constexpr bool kKeeps = true;
#endif
std::atomic<size_t> kept_bytes_max = kKeptBytesDefault;  // of all kept blocks
constexpr size_t kKeptBlockMin = size_t{128} << 10;      // below it the allocator keeps its own
constexpr size_t kKeptBlockMax = size_t{32} << 20;

constexpr int kHeapKeptBytes = 64 << 20;
constexpr int kHeaps = 2;  // a thread has its own small blocks at hand, whichever it shares
constexpr int kHeapBlockMax = 32 << 20;  // what is larger is the system's own; as much as it takes

bool IsLarge(size_t size_bytes) {
  return size_bytes >= kHugePageBytes;
}

size_t WholePages(size_t size_bytes) {
  return (size_bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
}

// Zero pages of the system, aligned to huge ones: maps one more than needed and gives back the
// rest.
std::byte* MapLarge(size_t size_bytes) {
  const size_t wanted = WholePages(size_bytes);
  const size_t mapped = wanted + kHugePageBytes;
  void* address = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) throw std::bad_alloc();
  auto* begin = static_cast<std::byte*>(address);
  const size_t before =
      (kHugePageBytes - reinterpret_cast<uintptr_t>(begin) % kHugePageBytes) % kHugePageBytes;
  if (before > 0) munmap(begin, before);
  if (before < kHugePageBytes) munmap(begin + before + wanted, kHugePageBytes - before);
  madvise(begin + before, wanted, MADV_HUGEPAGE);  // refused where the system has none: as good
  return begin + before;
}

bool IsKept(size_t size_bytes) {
  return kKeeps && size_bytes >= kKeptBlockMin && size_bytes <= kKeptBlockMax;
}

// What may be kept is the system's own pages, too: long lives of some of it in a heap would keep
// the heap from shrinking.
std::byte* New(size_t size_bytes) {
  if (IsLarge(size_bytes)) return MapLarge(size_bytes);
  if (!IsKept(size_bytes)) {
    return static_cast<std::byte*>(::operator new(size_bytes + 1, kAlignment));
  }
  void* const pages =
      mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::byte*>(pages);
}

void Delete(std::byte* memory, size_t size_bytes) {
  if (IsLarge(size_bytes)) {
    munmap(memory, WholePages(size_bytes));
  } else if (IsKept(size_bytes)) {
    munmap(memory, size_bytes);
  } else {
    ::operator delete(memory, kAlignment);
  }
}

// Blocks that were given back and may be wanted again: a message of a megabyte comes and goes with
// every decode step, and memory fresh from the system costs more than the copy into it.
class Kept {
 public:
  std::byte* Take(size_t size_bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = by_size_.find(size_bytes);
    if (found == by_size_.end() || found->second.blocks.empty()) return nullptr;
    auto& [blocks, fewest] = found->second;
    std::byte* memory = blocks.back();
    blocks.pop_back();
    fewest = std::min(fewest, blocks.size());
    bytes_ -= size_bytes;
    return memory;
  }

  // False if there is no room for it.
  bool Give(std::byte* memory, size_t size_bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (bytes_ + size_bytes > kept_bytes_max) return false;
    by_size_[size_bytes].blocks.push_back(memory);
    bytes_ += size_bytes;
    return true;
  }

  // Takes all that nobody has needed since the last time.
  std::vector<std::pair<std::byte*, size_t>> TakeIdle() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::pair<std::byte*, size_t>> idle;
    for (auto& [size_bytes, kept] : by_size_) {
      for (; kept.fewest > 0; --kept.fewest) {
        idle.emplace_back(kept.blocks.back(), size_bytes);
        kept.blocks.pop_back();
        bytes_ -= size_bytes;
      }
      kept.fewest = kept.blocks.size();
    }
    return idle;
  }

 private:
  struct OfSize {
    std::vector<std::byte*> blocks;
    size_t fewest = 0;  // that there were at any time since TakeIdle
  };

  std::mutex mutex_;
  std::unordered_map<size_t, OfSize> by_size_;
  size_t bytes_ = 0;
};

Kept& TheKept() {
  static Kept& kept = *new Kept;  // memory may be given back by statics, after all destructors
  return kept;
}

// Sizes that a block may serve are few, so that one that comes back fits what is wanted next.
size_t KeptSize(size_t size_bytes) {
  const size_t step = std::bit_floor(size_bytes) / 8;
  return (size_bytes + step - 1) / step * step;
}

// Zero where it is the system's pages.
Memory NewMemory(size_t size_bytes) {
  return Memory(New(size_bytes), {size_bytes});
}

// A block that was kept, if there is one that fits; *size_bytes becomes what one of that size has.
Memory TakeKept(size_t* size_bytes) {
  if (!IsKept(*size_bytes)) return nullptr;
  *size_bytes = KeptSize(*size_bytes);
  return Memory(TheKept().Take(*size_bytes), {*size_bytes});
}

}  // namespace

void MemoryDeleter::operator()(std::byte* memory) const {
  if (IsKept(size_bytes) && TheKept().Give(memory, size_bytes)) return;
  Delete(memory, size_bytes);
}

Memory AllocateMemory(size_t size_bytes) {
  if (Memory memory = TakeKept(&size_bytes)) return memory;
  return NewMemory(size_bytes);
}

Memory AllocateZeroedMemory(size_t size_bytes) {
  Memory memory = TakeKept(&size_bytes);
  const bool is_zero = memory == nullptr && (IsLarge(size_bytes) || IsKept(size_bytes));
  if (memory == nullptr) memory = NewMemory(size_bytes);
  if (!is_zero) std::memset(memory.get(), 0, size_bytes);
  return memory;
}

void KeepFreedMemory(size_t bytes_max) {
  kept_bytes_max = bytes_max;
  mallopt(M_TRIM_THRESHOLD, kHeapKeptBytes);
  mallopt(M_MMAP_THRESHOLD, kHeapBlockMax);
  mallopt(M_ARENA_MAX, kHeaps);
}

void GiveBackIdleMemory() {
  for (const auto& [memory, size_bytes] : TheKept().TakeIdle()) Delete(memory, size_bytes);
  malloc_trim(0);
}

}  // namespace annulus
