#include "base/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "base/heap_trimmer.h"

#include "tests/catch.h"

namespace annulus {
namespace {

TEST_CASE("memory of any size is aligned, and zero where that was asked for") {
  constexpr size_t kMiB = size_t{1} << 20;
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{63}, size_t{4096}, 2 * kMiB - 1, 2 * kMiB,
                             2 * kMiB + 1, 7 * kMiB}) {
    CAPTURE(bytes);
    for (int round = 0; round < 2; ++round) {  // the second may get what the first gave back
      Memory zeroed = AllocateZeroedMemory(bytes);
      Memory plain = AllocateMemory(bytes);
      CHECK(reinterpret_cast<uintptr_t>(zeroed.get()) % 64 == 0);
      CHECK(reinterpret_cast<uintptr_t>(plain.get()) % 64 == 0);
      const auto* begin = zeroed.get();
      CHECK(std::all_of(begin, begin + bytes, [](std::byte b) { return b == std::byte{0}; }));
      std::fill_n(zeroed.get(), bytes, std::byte{0xff});
      std::fill_n(plain.get(), bytes, std::byte{0xff});
    }
  }
}

#if !defined(__SANITIZE_ADDRESS__)
TEST_CASE("memory that was given back serves whoever wants about as much next, but not as zeroed") {
  constexpr size_t kMiB = size_t{1} << 20;
  for (const size_t bytes : {kMiB, 3 * kMiB}) {
    CAPTURE(bytes);
    Memory first = AllocateMemory(bytes);
    std::fill_n(first.get(), bytes, std::byte{0xff});
    const auto* const place = first.get();
    first.reset();
    const Memory zeroed = AllocateZeroedMemory(bytes);
    CHECK(std::all_of(zeroed.get(), zeroed.get() + bytes,
                      [](std::byte b) { return b == std::byte{0}; }));
    const bool taken = zeroed.get() == place;
    const Memory again = AllocateMemory(bytes - bytes / 100);
    CHECK((taken || again.get() == place));
  }
}

TEST_CASE("of bulk data as much is kept as a program says") {
  constexpr size_t kBytes = size_t{6} << 20;
  // Whether the block is still the process's own once it was given back.
  const auto is_kept = [] {
    Memory memory = AllocateMemory(kBytes);
    std::byte* const place = memory.get();
    memory.reset();
    unsigned char resident = 0;
    return mincore(place, 1, &resident) == 0;
  };
  CHECK(is_kept());
  KeepFreedMemory(0);
  CHECK(!is_kept());
  KeepFreedMemory();
  CHECK(is_kept());
}

int64_t ResidentBytes() {
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

TEST_CASE("what is kept goes back once nobody has needed it for a while") {
  constexpr int64_t kMiB = 1 << 20;
  const auto take = [](int count) {
    std::vector<Memory> blocks;
    for (int i = 0; i < count; ++i) {
      blocks.push_back(AllocateMemory(kMiB));
      std::fill_n(blocks.back().get(), kMiB, std::byte{1});
    }
  };
  for (int i = 0; i < 2; ++i) GiveBackIdleMemory();  // what others have left
  take(32);
  const int64_t kept = ResidentBytes();
  for (int i = 0; i < 3; ++i) {
    take(8);  // these are needed each time
    GiveBackIdleMemory();
  }
  CHECK(ResidentBytes() <= kept - 20 * kMiB);
  CHECK(ResidentBytes() >= kept - 28 * kMiB);
  GiveBackIdleMemory();
  GiveBackIdleMemory();
  CHECK(ResidentBytes() <= kept - 28 * kMiB);
}

TEST_CASE("what is free among what lives on goes back to the system") {
  constexpr size_t kBlocks = 16 << 10;
  constexpr size_t kBytes = 4000;
  constexpr int64_t kMiB = 1 << 20;
  KeepFreedMemory();
  std::vector<std::string> lives;
  {
    std::vector<std::string> ends;
    for (size_t i = 0; i < kBlocks; ++i) {
      ends.emplace_back(kBytes, 'x');
      if (i % 64 == 0) lives.emplace_back(100, 'x');
    }
  }
  const int64_t before = ResidentBytes();
  const HeapTrimmer trimmer(absl::Milliseconds(10));
  const absl::Time end = absl::Now() + absl::Seconds(10);
  while (ResidentBytes() > before - 40 * kMiB && absl::Now() < end) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  CHECK(ResidentBytes() <= before - 40 * kMiB);  // of 62
  CHECK(lives.back() == std::string(100, 'x'));
}
#endif

TEST_CASE("what is large lies on whole huge pages") {
  constexpr size_t kHugePage = size_t{2} << 20;
  const Memory memory = AllocateMemory(3 * kHugePage / 2);
  CHECK(reinterpret_cast<uintptr_t>(memory.get()) % kHugePage == 0);
}

}  // namespace
}  // namespace annulus
