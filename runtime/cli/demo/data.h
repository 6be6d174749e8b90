// The context of the demo: noise with 64 associations planted in it, each a key and the value that
// a query made for the key must bring back. Every row is a pure function of the seed and its
// position, so that the upload makes it in pieces and the oracle makes it again; nobody holds it
// whole. All numbers are exact in bf16. Immutable; thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "annulus/tensor.h"
#include "attention/backend.h"
#include "attention/pattern.h"

namespace annulus {

inline constexpr int kDemoHeads = 8;
inline constexpr int kDemoKvHeads = 4;
inline constexpr int kDemoGroup = kDemoHeads / kDemoKvHeads;
inline constexpr int kDemoDim = 64;  // of keys and of values
inline constexpr int kDemoAssociations = 64;

class DemoData {
 public:
  // tokens ≥ kDemoAssociations.
  DemoData(uint64_t seed, int64_t tokens);

  int64_t tokens() const { return tokens_; }

  // Where an association is planted, in every KV head. They ascend, one in each 64th of the
  // context.
  int64_t Position(int association) const { return positions_[static_cast<size_t>(association)]; }

  // Rows `tokens` of KV heads `heads`: bf16 [tokens.size(), heads.count, kDemoDim].
  Tensor Keys(TokenRange tokens, HeadRange heads) const;
  Tensor Values(TokenRange tokens, HeadRange heads) const;

  // A query that asks for the association in every head: bf16 [1, kDemoHeads, kDemoDim]. Its score
  // is 32 on that key (scale 1/8), 0 on the other planted ones and about 2.3·N(0, 1) on noise, so
  // that among a million keys it has all the weight but 2e-7.
  Tensor Query(int association) const;

  // Queries of the positions `tokens`: as Query(a) in row ChunkRow(a), noise in the others.
  // bf16 [tokens.size(), kDemoHeads, kDemoDim]; at least kDemoAssociations rows.
  Tensor Chunk(TokenRange tokens) const;
  static int64_t ChunkRow(int association, int64_t rows) {
    return association * (rows / kDemoAssociations);
  }

  // Whether out [kDemoDim] is the association's value, within 1% of its length: rounding is far
  // less, any other answer far more.
  bool IsValueOf(int association, const float* out) const;

 private:
  enum class Kind : uint64_t { kKey, kValue, kQuery };

  void FillNoise(Kind kind, int64_t position, HeadRange heads, uint16_t* rows) const;
  void FillPlanted(Kind kind, int association, HeadRange heads, uint16_t* rows) const;
  Tensor NoiseRows(Kind kind, TokenRange tokens, HeadRange heads) const;
  Tensor KvRows(Kind kind, TokenRange tokens, HeadRange heads) const;

  uint64_t seed_;
  int64_t tokens_;
  std::vector<int64_t> positions_;
  std::vector<uint64_t> signs_;  // by kind: bit c flips dimension c of the planted rows
  std::vector<uint16_t> noise_;  // bf16 of a random byte
};

}  // namespace annulus
