// The CPU kernels by themselves, each in memory of exactly the size that it asks for, between pages
// that nobody may touch, against float64: a seeded part of all shapes here, all of them by hand
// ([.sweep], see CONTRIBUTING.md).
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

#include "attention/cpu/kernels.h"
#include "attention/cpu/tile_memory.h"
#include "base/rng.h"
#include "tests/attention/contenders.h"
#include "tests/attention/guarded_memory.h"
#include "tests/catch.h"

namespace annulus {
namespace {

using cpu::kBlockKeys;
using cpu::Kernel;
using cpu::KernelSet;
using test::GuardedMemory;

constexpr int kDimMax = 576;
constexpr int kRowsMax = 64;

// Two blocks and how they are seen.
struct Variant {
  int keys[2];     // of each block; a block of none is left out
  bool masked;     // by a mask for each token; else all keys are seen
  bool one_token;  // the rows are heads of one token; else tokens of one head
  int gap;         // between rows of the blocks, in elements
};

constexpr Variant kVariants[] = {{{64, 64}, false, false, 0}, {{64, 37}, true, false, 0},
                                 {{64, 1}, false, true, 24},  {{63, 0}, true, true, 8},
                                 {{5, 64}, true, false, 40},  {{33, 16}, false, false, 0},
                                 {{1, 0}, false, true, 0},    {{64, 58}, true, true, 0}};
constexpr int kVariantCount = static_cast<int>(std::size(kVariants));

// What rows see and what they then are; random, the same for all sizes of V.
struct Inputs {
  Inputs(DType q_dtype, DType kv_dtype, int dim, uint64_t seed) : head_dim(dim) {
    Rng rng(seed);
    const auto fill = [&rng](std::vector<float>* values, size_t count, DType dtype) {
      values->resize(count);
      for (float& value : *values) {
        const float exact = rng.Normal();
        uint32_t stored = 0;
        Convert(&exact, DType::kF32, &stored, dtype, 1);
        Convert(&stored, dtype, &value, DType::kF32, 1);
      }
    };
    fill(&q, static_cast<size_t>(kRowsMax * dim), q_dtype);
    for (int b = 0; b < 2; ++b) {
      fill(&k[b], static_cast<size_t>(kBlockKeys * dim), kv_dtype);
      fill(&v[b], static_cast<size_t>(kBlockKeys * kDimMax), kv_dtype);
      for (uint64_t& mask : masks[b]) mask = rng.Next();
      masks[b][7] = 0;  // sees nothing at all
    }
    masks[0][3] = 0;
  }

  uint64_t Seen(const Variant& variant, int block, int row) const {
    const int keys = variant.keys[block];
    const uint64_t there = keys == 64 ? ~uint64_t{0} : (uint64_t{1} << keys) - 1;
    return variant.masked ? there & masks[block][variant.one_token ? 0 : row] : there;
  }

  float scale() const {
    return std::numbers::log2e_v<float> / std::sqrt(static_cast<float>(head_dim));
  }

  int head_dim;
  std::vector<float> q;     // [64, head_dim]
  std::vector<float> k[2];  // [64, head_dim]
  std::vector<float> v[2];  // [64, kDimMax]
  uint64_t masks[2][kRowsMax];
};

// In float64: log2 of the sum and the normalised out of the first v_dim dims.
struct Answers {
  Answers(const Inputs& inputs, const Variant& variant, int v_dim)
      : log2_sums(kRowsMax), outs(static_cast<size_t>(kRowsMax) * kDimMax) {
    for (int row = 0; row < kRowsMax; ++row) SetRow(inputs, variant, v_dim, row);
  }

  void SetRow(const Inputs& inputs, const Variant& variant, int v_dim, int row) {
    const auto dim = static_cast<size_t>(inputs.head_dim);
    double* out = outs.data() + static_cast<size_t>(row) * kDimMax;
    double sum = 0;  // scores are small: no maximum is needed
    for (size_t b = 0; b < 2; ++b) {
      const uint64_t seen = inputs.Seen(variant, static_cast<int>(b), row);
      for (size_t key = 0; key < kBlockKeys; ++key) {
        if ((seen >> key & 1) == 0) continue;
        double score = 0;
        for (size_t c = 0; c < dim; ++c) {
          score += double{inputs.q[static_cast<size_t>(row) * dim + c]} *
                   double{inputs.k[b][key * dim + c]};
        }
        const double weight = std::exp2(score * double{inputs.scale()});
        sum += weight;
        const float* value = inputs.v[b].data() + key * kDimMax;
        for (int c = 0; c < v_dim; ++c) out[c] += weight * double{value[c]};
      }
    }
    for (int c = 0; c < v_dim && sum > 0; ++c) out[c] /= sum;
    log2_sums[static_cast<size_t>(row)] = std::log2(sum);
  }

  std::vector<double> log2_sums;
  std::vector<double> outs;  // [64, kDimMax]
};

// All memory that a kernel gets to see.
class Bench {
 public:
  // Rounds rows of floats to `dtype` and lays them out `gap` apart, up to the guard.
  const std::byte* Place(size_t at, const float* rows, size_t from_stride, int count, int dim,
                         int gap, DType dtype) {
    const size_t size = SizeOf(dtype);
    const auto stride = static_cast<size_t>(dim + gap);
    const size_t bytes =
        (static_cast<size_t>(count - 1) * stride + static_cast<size_t>(dim)) * size;
    std::byte* to = inputs_[at].Take(bytes);
    for (int r = 0; r < count; ++r) {
      Convert(rows + static_cast<size_t>(r) * from_stride, DType::kF32,
              to + static_cast<size_t>(r) * stride * size, dtype, dim);
    }
    return to;
  }

  cpu::TileMemory Tile(const cpu::TileFloats& floats) {
    size_t next = 0;
    const cpu::TileMemory tile = cpu::CutTile(floats, [&](size_t count) {
      return reinterpret_cast<float*>(scratch_[next++].Take(count * sizeof(float), 64));
    });
    cpu::ClearTile(floats, tile);
    return tile;
  }

  // Memory that is as aligned as vectors and arrays are.
  template <typename T>
  T* Array(size_t at, size_t count) {
    return reinterpret_cast<T*>(arrays_[at].Take(count * sizeof(T), alignof(T)));
  }

  bool Intact() const {
    const auto intact = [](const GuardedMemory& memory) { return memory.Intact(); };
    return std::all_of(std::begin(scratch_), std::end(scratch_), intact) &&
           std::all_of(std::begin(arrays_), std::end(arrays_), intact);
  }

 private:
  static constexpr size_t kBytes = 80 * (kDimMax + 8) * sizeof(float);
  GuardedMemory inputs_[4] = {GuardedMemory(kBytes), GuardedMemory(kBytes), GuardedMemory(kBytes),
                              GuardedMemory(kBytes)};
  GuardedMemory scratch_[7] = {GuardedMemory(kBytes), GuardedMemory(kBytes), GuardedMemory(kBytes),
                               GuardedMemory(kBytes), GuardedMemory(kBytes), GuardedMemory(kBytes),
                               GuardedMemory(kBytes)};
  GuardedMemory arrays_[3] = {GuardedMemory(kBytes), GuardedMemory(kBytes), GuardedMemory(kBytes)};
};

struct Case {
  std::string name;
  const KernelSet* kernels;
  DType q;
  DType kv;
};

// Every kernel of this machine with every dtype it takes.
std::vector<Case> AllCases() {
  std::vector<Case> cases;
  ForEachSimdTarget([&cases] {
    // Instruction sets for which nothing was compiled fall back on another.
    const auto known = [&cases](const KernelSet* kernels) {
      return std::any_of(cases.begin(), cases.end(),
                         [kernels](const Case& one) { return one.kernels == kernels; });
    };
    const KernelSet* fma = &cpu::FmaKernels();
    const KernelSet* dot = cpu::Bf16DotKernels();
    if (!known(fma)) {
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        cases.push_back({fma->target, fma, DType::kF32, dtype});
      }
    }
    if (dot != nullptr && !known(dot)) {
      cases.push_back({dot->target, dot, DType::kBF16, DType::kBF16});
    }
  });
  return cases;
}

// One pair of head dims, one variant, all kernels and numbers of rows of one case.
class Sweep {
 public:
  Sweep(const Case& one, const Inputs& inputs, const Variant& variant, int v_dim,
        const Answers& answers, Bench* bench)
      : case_(one),
        inputs_(inputs),
        variant_(variant),
        v_dim_(v_dim),
        answers_(answers),
        bench_(*bench) {}

  // The number of runs.
  int Run() {
    for (size_t b = 0; b < 2; ++b) {
      cpu::KeyBlock& block = blocks_[b];
      block.keys = variant_.keys[b];
      if (block.keys == 0) continue;
      block.k = bench_.Place(2 * b, inputs_.k[b].data(), static_cast<size_t>(inputs_.head_dim),
                             block.keys, inputs_.head_dim, variant_.gap, case_.kv);
      block.v = bench_.Place(2 * b + 1, inputs_.v[b].data(), kDimMax, block.keys, v_dim_,
                             variant_.gap, case_.kv);
      block.k_row_stride = static_cast<size_t>(inputs_.head_dim + variant_.gap);
      block.v_row_stride = static_cast<size_t>(v_dim_ + variant_.gap);
    }
    const KernelSet& kernels = *case_.kernels;
    for (int rows = 1; rows <= kRowsMax; ++rows) RunKernel(kernels.panel, "panel", rows);
    for (int rows = 1; rows <= kernels.stream_rows_max; ++rows) {
      RunKernel(kernels.stream, "stream", rows);
    }
    return kRowsMax + kernels.stream_rows_max;
  }

 private:
  void RunKernel(const Kernel& kernel, const char* name, int rows) {
    cpu::TileShape shape;
    shape.tokens = variant_.one_token ? 1 : rows;
    shape.heads = variant_.one_token ? rows : 1;
    shape.head_dim = inputs_.head_dim;
    shape.v_head_dim = v_dim_;
    shape.kv_dtype = case_.kv;
    shape.scale = inputs_.scale();
    const cpu::TileMemory tile = bench_.Tile(kernel.floats(shape));
    auto* q = bench_.Array<float>(0, static_cast<size_t>(shape.head_dim));
    for (int row = 0; row < rows; ++row) {
      std::copy_n(inputs_.q.data() + row * shape.head_dim, shape.head_dim, q);
      kernel.set_query(shape, tile, row, q);
    }
    auto* masks = bench_.Array<uint64_t>(1, static_cast<size_t>(shape.tokens));
    for (size_t b = 0; b < 2 && variant_.keys[b] > 0; ++b) {
      cpu::KeyBlock block = blocks_[b];
      std::copy_n(inputs_.masks[b], shape.tokens, masks);
      if (variant_.masked) block.masks = masks;
      kernel.attend(shape, tile, block, b == 0 && variant_.keys[1] > 0 ? &blocks_[1] : nullptr);
    }
    auto* out = bench_.Array<float>(2, static_cast<size_t>(rows * v_dim_));
    kernel.get_out(shape, tile, out);
    bool right = bench_.Intact();
    for (int row = 0; row < rows; ++row, out += v_dim_) {
      right = right && IsRight(row, tile.max[row], tile.sum[row], out);
    }
    if (right) return;
    FAIL(case_.name << " " << name << ", " << Name(case_.kv) << ", head_dim " << shape.head_dim
                    << ", v_head_dim " << v_dim_ << ", variant " << &variant_ - kVariants << ", "
                    << rows
                    << " rows: " << (bench_.Intact() ? "wrong" : "wrote beyond its memory"));
  }

  bool IsRight(int row, float max, float sum, const float* out) const {
    const double expected = answers_.log2_sums[static_cast<size_t>(row)];
    if (std::isinf(expected)) return sum == 0;
    const bool dot = case_.q == DType::kBF16;  // which rounds the weights
    if (!(std::abs(double{max} + std::log2(double{sum}) - expected) <= 2e-5)) return false;
    const double* want = answers_.outs.data() + static_cast<size_t>(row) * kDimMax;
    double wrong = 0;
    double size = 0;
    for (int c = 0; c < v_dim_; ++c) {
      const double difference = double{out[c]} / double{sum} - want[c];
      wrong += difference * difference;
      size += want[c] * want[c];
    }
    // Values that cancel leave a row smaller than what was added up for it.
    const double floor = 0.1 * std::sqrt(static_cast<double>(v_dim_));
    return std::sqrt(wrong) <= (dot ? 1e-2 : 1e-5) * std::max(std::sqrt(size), floor);
  }

  const Case& case_;
  const Inputs& inputs_;
  const Variant& variant_;
  const int v_dim_;
  const Answers& answers_;
  Bench& bench_;
  cpu::KeyBlock blocks_[2];
};

}  // namespace

TEST_CASE("kernels stay within the memory that they ask for on some shapes") {
  const uint64_t seed = 17;
  INFO("seed " << seed);
  Rng rng(seed);
  Bench bench;
  // Where sizes are rounded up, small ones show it.
  std::vector<std::pair<int, int>> dims = {{16, 8}, {8, 24}, {40, 40}, {64, 64}, {128, 72}};
  for (int i = 0; i < 4; ++i) {
    const auto dim = [&rng] { return static_cast<int>(8 * rng.Between(1, kDimMax / 8)); };
    dims.emplace_back(dim(), dim());
  }
  const std::vector<Case> cases = AllCases();
  for (const auto& [dim, v_dim] : dims) {
    for (const Case& one : cases) {
      const Inputs inputs(one.q, one.kv, dim, rng.Next());
      const Variant& variant = kVariants[rng.Below(kVariantCount)];
      const Answers answers(inputs, variant, v_dim);
      Sweep(one, inputs, variant, v_dim, answers, &bench).Run();
    }
  }
}

TEST_CASE("every shape of every kernel stays within the memory that it asks for", "[.sweep]") {
  Bench bench;
  int64_t runs = 0;
  for (const Case& one : AllCases()) {
    for (int dim = 8; dim <= kDimMax; dim += 8) {
      const Inputs inputs(one.q, one.kv, dim, static_cast<uint64_t>(dim));
      std::vector<Answers> answers;
      for (const Variant& variant : kVariants) answers.emplace_back(inputs, variant, kDimMax);
      for (int v_dim = 8; v_dim <= kDimMax; v_dim += 8) {
        const auto variant = static_cast<size_t>(dim / 8 + v_dim / 8) % kVariantCount;
        runs += Sweep(one, inputs, kVariants[variant], v_dim, answers[variant], &bench).Run();
      }
    }
    WARN(one.name << " " << Name(one.kv) << ": " << runs << " runs so far are right");
  }
}

}  // namespace annulus
