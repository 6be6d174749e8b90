// Exact integers through the copy engine and the matrix units: layouts, descriptions of operands,
// maps of any pitch over any allocation, blocks with fewer than 64 rows.
#include <cuda_runtime_api.h>

#include <cstring>
#include <limits>
#include <vector>

#include "annulus/dtype.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/gpu/block_product.h"
#include "tests/gpu/hopper.h"

namespace annulus {
namespace {

// Rows of `dim` small integers at a pitch; what lies between them and behind them is NaN.
struct Rows {
  std::vector<uint16_t> memory;
  std::vector<float> values;  // [rows, dim]
  int64_t pitch;              // elements
};

Rows RandomRows(Rng& rng, DType dtype, int rows, int dim, int64_t pitch) {
  Rows made{std::vector<uint16_t>(static_cast<size_t>(64 * pitch)),
            std::vector<float>(static_cast<size_t>(64 * dim)), pitch};
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (size_t i = 0; i < made.memory.size(); ++i) {
    const auto row = static_cast<int64_t>(i) / pitch;
    const auto column = static_cast<int64_t>(i) % pitch;
    const bool there = row < rows && column < dim;
    const float value = there ? static_cast<float>(rng.Between(-2, 2)) : nan;
    if (there) made.values[static_cast<size_t>(row * dim + column)] = value;
    Convert(&value, DType::kF32, &made.memory[i], dtype, 1);
  }
  return made;
}

// Memory of the device: room around an allocation's end, so that a block can lie at the very end.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes) : bytes_(bytes) {
    REQUIRE(cudaMalloc(&data_, bytes) == cudaSuccess);
    cudaMemset(data_, 0xff, bytes);
  }
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // The last bytes of it.
  void* PutLast(const void* from, size_t bytes) {
    std::byte* to = static_cast<std::byte*>(data_) + bytes_ - bytes;
    REQUIRE(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice) == cudaSuccess);
    return to;
  }
  std::vector<float> Floats(size_t count) const {
    std::vector<float> to(count);
    REQUIRE(cudaMemcpy(to.data(), data_, count * sizeof(float), cudaMemcpyDeviceToHost) ==
            cudaSuccess);
    return to;
  }
  float* floats() { return static_cast<float*>(data_); }

 private:
  void* data_ = nullptr;
  const size_t bytes_;
};

void* Put(DeviceMemory& memory, const Rows& rows, int count) {
  const auto elements = static_cast<size_t>(count * rows.pitch);
  return memory.PutLast(rows.memory.data(), elements * sizeof(uint16_t));
}

// One block of `rows` keys, whose tensors lie at the end of allocations of `bytes`.
void CheckBlock(uint64_t seed, DType dtype, int dim, int64_t pitch, int rows, size_t bytes) {
  CAPTURE(seed, dim, pitch, rows, bytes);
  Rng rng(seed);
  const Rows q = RandomRows(rng, dtype, 64, dim, dim + 8 * rng.Between(0, 9));
  const Rows k = RandomRows(rng, dtype, rows, dim, pitch);
  const Rows v = RandomRows(rng, dtype, rows, dim, dim + 8 * rng.Between(0, 9));
  const Rows w = RandomRows(rng, dtype, 64, 64, 64);
  DeviceMemory q_memory(bytes), k_memory(bytes), v_memory(bytes), w_memory(1 << 13);
  DeviceMemory scores(64 * 64 * sizeof(float)), sums(static_cast<size_t>(64 * dim) * sizeof(float));
  test::BlockProduct problem;
  problem.queries = Put(q_memory, q, 64);
  problem.keys = Put(k_memory, k, rows);
  problem.values = Put(v_memory, v, rows);
  problem.weights = Put(w_memory, w, 64);
  problem.q_pitch = 2 * q.pitch;
  problem.k_pitch = 2 * k.pitch;
  problem.v_pitch = 2 * v.pitch;
  problem.rows = rows;
  problem.dim = dim;
  problem.bf16 = dtype == DType::kBF16;
  problem.scores = scores.floats();
  problem.sums = sums.floats();
  REQUIRE(test::LaunchBlockProduct(problem, nullptr) == cudaSuccess);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  std::vector<float> want_scores(64 * 64), want_sums(static_cast<size_t>(64 * dim));
  for (int r = 0; r < 64; ++r) {
    for (int key = 0; key < 64; ++key) {
      float& score = want_scores[static_cast<size_t>(r * 64 + key)];
      for (int d = 0; d < dim; ++d) {
        score += q.values[static_cast<size_t>(r * dim + d)] *
                 k.values[static_cast<size_t>(key * dim + d)];
        want_sums[static_cast<size_t>(r * dim + d)] += 2 *
                                                       w.values[static_cast<size_t>(r * 64 + key)] *
                                                       v.values[static_cast<size_t>(key * dim + d)];
      }
    }
  }
  CHECK(scores.Floats(want_scores.size()) == want_scores);
  CHECK(sums.Floats(want_sums.size()) == want_sums);
}

TEST_CASE("products of a block are exact in both formats and all head dims") {
  if (!test::HasHopper()) return;
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const int dim : {64, 128, 256}) {
      for (uint64_t seed = 1; seed < 4; ++seed) CheckBlock(seed, dtype, dim, dim, 64, 1 << 20);
    }
  }
}

TEST_CASE("one map of a pitch reads any allocation up to its last row") {
  if (!test::HasHopper()) return;
  for (const int64_t pitch : {64, 72, 128, 192, 576, 1024, 2048, 8192, 32768}) {
    for (const size_t bytes : {size_t{5} << 20, size_t{300} << 20, size_t{5} << 30}) {
      CheckBlock(static_cast<uint64_t>(pitch), DType::kBF16, 64, pitch, 64, bytes);
    }
  }
}

TEST_CASE("rows that a block does not have are zeros and are not read") {
  if (!test::HasHopper()) return;
  for (const int dim : {64, 128, 256}) {
    for (const int rows : {1, 7, 33, 63}) {
      CheckBlock(static_cast<uint64_t>(rows), DType::kF16, dim, dim + 8, rows, 1 << 21);
    }
  }
}

}  // namespace
}  // namespace annulus
