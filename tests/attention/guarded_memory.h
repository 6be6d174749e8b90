// Memory between pages that nobody may touch: whoever reads or writes beyond its end, or far before
// its beginning, dies there; who writes just before it, or into what alignment left over, is found
// by Intact. One thread.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "base/check.h"

namespace annulus::test {

class GuardedMemory {
 public:
  explicit GuardedMemory(size_t bytes_max)
      : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))),
        room_((bytes_max + kMargin + page_ - 1) / page_ * page_) {
    void* at = mmap(nullptr, room_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ANNULUS_CHECK(at != MAP_FAILED);
    base_ = static_cast<std::byte*>(at);
    ANNULUS_CHECK(mprotect(base_ + page_, room_, PROT_READ | PROT_WRITE) == 0);
  }
  ~GuardedMemory() { munmap(base_, room_ + 2 * page_); }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  // Memory for so many bytes, filled with NaN (of any dtype), which ends at the guard, or as near
  // to it as `align` allows. What was taken before is gone.
  std::byte* Take(size_t bytes, size_t align = 1) {
    std::byte* end = base_ + page_ + room_;
    taken_ = end - (bytes + align - 1) / align * align;
    bytes_ = bytes;
    ANNULUS_CHECK(taken_ >= base_ + page_ + kMargin);
    std::fill(taken_, taken_ + bytes, std::byte{0xff});
    std::fill(taken_ - kMargin, taken_, kMark);
    std::fill(taken_ + bytes, end, kMark);
    return taken_;
  }

  bool Intact() const {
    const auto marked = [](std::byte byte) { return byte == kMark; };
    return std::all_of(taken_ - kMargin, taken_, marked) &&
           std::all_of(taken_ + bytes_, base_ + page_ + room_, marked);
  }

 private:
  static constexpr size_t kMargin = 256;
  static constexpr std::byte kMark{0x5a};

  size_t page_;
  size_t room_;
  std::byte* base_ = nullptr;
  std::byte* taken_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace annulus::test
