#include "base/memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

namespace annulus {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr size_t kHugePageBytes = size_t{2} << 20;

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

std::byte* NewSmall(size_t size_bytes) {
  return static_cast<std::byte*>(::operator new(size_bytes + 1, kAlignment));
}

}  // namespace

void MemoryDeleter::operator()(std::byte* memory) const {
  if (IsLarge(size_bytes)) {
    munmap(memory, WholePages(size_bytes));
  } else {
    ::operator delete(memory, kAlignment);
  }
}

Memory AllocateMemory(size_t size_bytes) {
  return Memory(IsLarge(size_bytes) ? MapLarge(size_bytes) : NewSmall(size_bytes), {size_bytes});
}

Memory AllocateZeroedMemory(size_t size_bytes) {
  Memory memory = AllocateMemory(size_bytes);
  if (!IsLarge(size_bytes)) std::memset(memory.get(), 0, size_bytes);
  return memory;
}

}  // namespace annulus
