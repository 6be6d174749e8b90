// Rows that go to a GPU together: every byte where it belongs and no other one written, in order
// with all else, and there for what runs in another stream.
#include "attention/cuda/space.h"

#include <cuda_runtime_api.h>

#include <cstring>
#include <vector>

#include "attention/backend.h"
#include "base/cuda/handles.h"
#include "base/rng.h"
#include "base/thread_pool.h"
#include "tests/catch.h"
#include "tests/gpu/hopper.h"

namespace annulus {
namespace {

TEST_CASE("rows of any size and place come to a GPU and touch nothing else") {
  if (!test::HasGpu()) return;
  const auto space = cuda::Space::Create(0).value();
  Rng rng(3);
  // Rows that fill both halves of the pinned memory more than once, ones of odd sizes, few.
  const struct {
    int64_t copies, rows;
    size_t row_bytes, gap;
  } shapes[] = {{1, 1, 1, 0},        {700, 1, 256, 256}, {64, 3, 1000, 24},
                {5000, 1, 7, 9},     {3, 40, 8192, 0},   {2, 2, (size_t{9} << 20) + 5, 11},
                {900, 1, 32768, 64}, {1, 0, 16, 0}};
  for (const auto& shape : shapes) {
    CAPTURE(shape.copies, shape.rows, shape.row_bytes);
    const size_t stride = shape.row_bytes + shape.gap;
    const size_t bytes = static_cast<size_t>(shape.copies * shape.rows) * stride + 64;
    std::vector<std::byte> from(bytes);
    for (std::byte& byte : from) byte = static_cast<std::byte>(rng.Below(256));
    std::vector<std::byte> expected(bytes, std::byte{0});
    Buffer to = space->AllocateZeroed(bytes).value();
    std::vector<RowsCopy> copies;
    for (int64_t i = 0; i < shape.copies; ++i) {
      const size_t at = static_cast<size_t>(i * shape.rows) * stride;
      copies.push_back(
          {from.data() + at, to.data() + at, shape.rows, shape.row_bytes, stride, stride});
      for (int64_t row = 0; row < shape.rows; ++row) {
        const size_t begin = at + static_cast<size_t>(row) * stride;
        std::memcpy(expected.data() + begin, from.data() + begin, shape.row_bytes);
      }
    }
    REQUIRE(space->CopyRowsIn(copies).ok());
    from.assign(bytes, std::byte{0xEE});  // they have been read
    std::vector<std::byte> got(bytes);
    REQUIRE(space->CopyOut(to.data(), got.data(), bytes).ok());
    REQUIRE(got == expected);
  }
}

TEST_CASE("a GPU's backend has threads of the host for loops beside attention") {
  if (!test::HasGpu()) return;
  const auto backend = MakeBackend("cuda", 3).value();
  REQUIRE(backend->pool() != nullptr);
  CHECK(backend->pool()->threads() == 3);
}

TEST_CASE("a stream that follows finds rows that were asked for before") {
  if (!test::HasGpu()) return;
  const auto space = cuda::Space::Create(0).value();
  const cuda::Stream stream = cuda::MakeStream().value();
  constexpr size_t kBytes = size_t{4} << 20;
  Buffer to = space->AllocateZeroed(kBytes).value();
  cuda::PinnedRoom seen;
  REQUIRE(seen.Reserve(kBytes).ok());
  std::vector<std::byte> from(kBytes);
  for (int round = 1; round < 40; ++round) {
    from.assign(kBytes, static_cast<std::byte>(round));
    REQUIRE(space->CopyRowsIn({{from.data(), to.data(), 1, kBytes, kBytes, kBytes}}).ok());
    REQUIRE(space->Follow(stream.get()).ok());
    REQUIRE(cudaMemcpyAsync(seen.data(), to.data(), kBytes, cudaMemcpyDeviceToHost, stream.get()) ==
            cudaSuccess);
    REQUIRE(cudaStreamSynchronize(stream.get()) == cudaSuccess);
    REQUIRE(std::memcmp(seen.data(), from.data(), kBytes) == 0);
  }
}

}  // namespace
}  // namespace annulus
