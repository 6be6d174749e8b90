// What tests of tracks in the service share: contexts that have one, and queries of an index.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "base/rng.h"
#include "runtime/service/service.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"

namespace annulus::test::tracks {

inline constexpr int64_t kTokens = 600;
inline constexpr int kIndexHeads = 3, kIndexDim = 24;

// Two layers; of the tracks the second one is the index.
inline ContextSpec Spec(DType index = DType::kF32) {
  ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
  spec.tracks = {{"other", 8, DType::kF16}, {"index", kIndexDim, index}};
  return spec;
}

inline AppendRequest AppendOf(ContextId id, int layer, const TensorView& rows, int64_t start,
                              int64_t tokens) {
  return {.context = id, .layer = layer, .start = start, .k = rows.Tokens(start, tokens)};
}

// Whole numbers of few values, the same again every 192 tokens: scores tie.
inline void MakeTies(Tensor* tensor) {
  const int64_t row = tensor->heads() * tensor->dim();
  for (int64_t i = 0; i < tensor->view().size(); ++i) {
    tensor->f32()[i] = tensor->f32()[i] < 0 ? 0.0f : 1.0f;
  }
  for (int64_t t = 192; t < tensor->tokens(); ++t) {
    std::copy_n(tensor->f32() + (t - 192) * row, row, tensor->f32() + t * row);
  }
}

struct Filled {
  Filled(Service& service, ContextSpec of, Rng& rng, bool ties = false) : spec(std::move(of)) {
    kv = LayerKv(spec, kTokens + 16, rng);
    rows = RandomTensor(kTokens + 16, 1, kIndexDim, rng);
    if (ties) MakeTies(&rows);
    id = service.Call(spec, CallContext()).value().id;
    for (const int layer : {0, 1}) {
      CHECK(service.Call(kv.Append(id, layer, 0, kTokens), CallContext()).ok());
    }
    CHECK(service.Call(AppendOf(id, index, rows, 0, 256), CallContext()).ok());
    CHECK(service.Call(AppendOf(id, index, rows, 256, kTokens - 256), CallContext()).ok());
  }

  ContextSpec spec;
  LayerKv kv;
  Tensor rows;
  ContextId id = 0;
  int index = TrackLayer(spec, 1, 0);
};

struct Asked {
  std::string word;
  Tensor q;
  std::vector<float> weights;
};

inline Asked Ask(const std::string& word, int64_t tokens, Rng& rng, bool ties = false) {
  const bool dsa = absl::StartsWith(word, "dsa");
  Asked asked{word, RandomTensor(tokens, dsa ? kIndexHeads : 2, kIndexDim, rng), {}};
  if (ties) MakeTies(&asked.q);
  for (int64_t i = 0; dsa && i < tokens * kIndexHeads; ++i) {
    asked.weights.push_back(ties ? static_cast<float>(rng.Below(3)) : rng.Normal());
  }
  return asked;
}

}  // namespace annulus::test::tracks
