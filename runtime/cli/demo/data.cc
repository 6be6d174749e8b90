#include "runtime/cli/demo/data.h"

#include <bit>
#include <cmath>

#include "base/rng.h"

namespace annulus {
namespace {

// Planted keys and the queries for them are ±2, values ±1.5, noise is uniform in [−2, 2).
constexpr float kPlantedKey = 2.0f;
constexpr float kPlantedValue = 1.5f;
constexpr float kNoiseStep = 1.0f / 64;

// Planted rows are rows of a Hadamard matrix with some columns flipped: ±1 and orthogonal.
float Hadamard(int row, int column, uint64_t flipped_columns) {
  const int ones = std::popcount(static_cast<unsigned>(row & column)) +
                   static_cast<int>((flipped_columns >> column) & 1);
  return ones % 2 == 0 ? 1.0f : -1.0f;
}

// All heads of a token of a contiguous bf16 tensor.
uint16_t* RowOf(Tensor* tensor, int64_t token) {
  return reinterpret_cast<uint16_t*>(tensor->data()) + token * tensor->heads() * tensor->dim();
}

}  // namespace

static_assert(kDemoAssociations <= kDemoDim, "planted keys are orthogonal");

DemoData::DemoData(uint64_t seed, int64_t tokens) : seed_(seed), tokens_(tokens) {
  Rng rng(seed);
  for (int i = 0; i < kDemoAssociations; ++i) {
    const int64_t begin = tokens * i / kDemoAssociations;
    const int64_t end = tokens * (i + 1) / kDemoAssociations;
    positions_.push_back(rng.Between(begin, end - 1));
  }
  const uint64_t key_signs = rng.Next();
  signs_ = {key_signs, rng.Next(), key_signs};  // a query looks like its key
  for (int byte = 0; byte < 256; ++byte) {
    noise_.push_back(F32ToBF16(static_cast<float>(byte - 128) * kNoiseStep));
  }
}

void DemoData::FillNoise(Kind kind, int64_t position, HeadRange heads, uint16_t* rows) const {
  static_assert(kDemoDim % 8 == 0, "a random word makes 8 elements");
  for (int head = heads.first; head < heads.end(); ++head) {
    // The product spreads neighbouring positions over the seeds; Rng mixes what it is given.
    Rng rng(seed_ ^ (static_cast<uint64_t>(position) * 0x9e3779b97f4a7c15u) ^
            ((static_cast<uint64_t>(kind) << 8 | static_cast<uint64_t>(head)) << 48));
    for (int c = 0; c < kDemoDim; c += 8) {
      const uint64_t word = rng.Next();
      for (int byte = 0; byte < 8; ++byte) *rows++ = noise_[(word >> (8 * byte)) & 0xff];
    }
  }
}

void DemoData::FillPlanted(Kind kind, int association, HeadRange heads, uint16_t* rows) const {
  const float size = kind == Kind::kValue ? kPlantedValue : kPlantedKey;
  const uint64_t signs = signs_[static_cast<size_t>(kind)];
  for (int i = 0; i < heads.count * kDemoDim; ++i) {
    rows[i] = F32ToBF16(size * Hadamard(association, i % kDemoDim, signs));
  }
}

Tensor DemoData::NoiseRows(Kind kind, TokenRange tokens, HeadRange heads) const {
  Tensor tensor(DType::kBF16, tokens.size(), heads.count, kDemoDim);
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    FillNoise(kind, t, heads, RowOf(&tensor, t - tokens.begin));
  }
  return tensor;
}

Tensor DemoData::Keys(TokenRange tokens, HeadRange heads) const {
  return KvRows(Kind::kKey, tokens, heads);
}

Tensor DemoData::Values(TokenRange tokens, HeadRange heads) const {
  return KvRows(Kind::kValue, tokens, heads);
}

Tensor DemoData::KvRows(Kind kind, TokenRange tokens, HeadRange heads) const {
  Tensor tensor = NoiseRows(kind, tokens, heads);
  for (int i = 0; i < kDemoAssociations; ++i) {
    if (Position(i) < tokens.begin || Position(i) >= tokens.end) continue;
    FillPlanted(kind, i, heads, RowOf(&tensor, Position(i) - tokens.begin));
  }
  return tensor;
}

Tensor DemoData::Query(int association) const {
  Tensor query(DType::kBF16, 1, kDemoHeads, kDemoDim);
  FillPlanted(Kind::kQuery, association, {0, kDemoHeads}, RowOf(&query, 0));
  return query;
}

Tensor DemoData::Chunk(TokenRange tokens) const {
  Tensor chunk = NoiseRows(Kind::kQuery, tokens, {0, kDemoHeads});
  for (int i = 0; i < kDemoAssociations; ++i) {
    FillPlanted(Kind::kQuery, i, {0, kDemoHeads}, RowOf(&chunk, ChunkRow(i, tokens.size())));
  }
  return chunk;
}

bool DemoData::IsValueOf(int association, const float* out) const {
  constexpr double kTolerance = 0.01;
  const uint64_t signs = signs_[static_cast<size_t>(Kind::kValue)];
  double error = 0;
  for (int c = 0; c < kDemoDim; ++c) {
    const double d = out[c] - kPlantedValue * Hadamard(association, c, signs);
    error += d * d;
  }
  return std::sqrt(error) <= kTolerance * kPlantedValue * std::sqrt(double{kDemoDim});
}

}  // namespace annulus
