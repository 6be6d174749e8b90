// A context of a running service and one query with its answer, for tests that do something to the
// service meanwhile.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "annulus/client.h"
#include "attention/kv_view.h"
#include "attention/reference/reference.h"
#include "base/rng.h"

namespace annulus::test {

inline Tensor NormalTensor(Rng& rng, int64_t tokens, int64_t heads, int64_t dim) {
  Tensor tensor(DType::kF32, tokens, heads, dim);
  for (int64_t i = 0; i < tokens * heads * dim; ++i) tensor.f32()[i] = rng.Normal();
  return tensor;
}

// One context and the query of its last token with the float64 answer.
struct Question {
  static constexpr int64_t kTokens = 1000;
  static constexpr int kHeads = 4, kKvHeads = 2, kDim = 32;

  explicit Question(Rng& rng)
      : q(NormalTensor(rng, 1, kHeads, kDim)),
        k(NormalTensor(rng, kTokens, kKvHeads, kDim)),
        v(NormalTensor(rng, kTokens, kKvHeads, kDim)) {
    const KvTable pages = KvTable::FromTensors(k, v);
    const Pattern pattern = *Pattern::Parse("causal", kKvHeads);
    for (int h = 0; h < kHeads; ++h) {
      expected.push_back(*ReferenceRow(q.view().Row(0, h), DType::kF32, pages, kTokens, pattern,
                                       h / (kHeads / kKvHeads), kTokens - 1,
                                       1.0f / std::sqrt(float{kDim})));
    }
  }

  AttendRequest Ask(ContextId context) const {
    AttendRequest request;
    request.context = context;
    request.q_start = kTokens - 1;
    request.kv_len = kTokens;
    request.q = q;
    return request;
  }

  bool IsRight(const AttendResult& answer) const {
    for (int h = 0; h < kHeads; ++h) {
      const ReferenceAnswer& want = expected[static_cast<size_t>(h)];
      if (!(std::abs(answer.lse.f32()[h] - want.lse) < 1e-5)) return false;
      for (int d = 0; d < kDim; ++d) {
        const double got = answer.out.f32()[h * kDim + d];
        if (!(std::abs(got - want.out[static_cast<size_t>(d)]) < 1e-5)) return false;
      }
    }
    return true;
  }

  static ContextSpec Spec(int replicas) {
    ContextSpec spec;
    spec.heads = kHeads;
    spec.kv_heads = kKvHeads;
    spec.head_dim = spec.v_head_dim = kDim;
    spec.dtype = DType::kF32;
    spec.partition.unit_blocks = 1;
    spec.replicas = replicas;
    return spec;
  }

  absl::Status Append(Client& client, ContextId context, int64_t start, int64_t tokens) const {
    AppendRequest append;
    append.context = context;
    append.start = start;
    append.k = k.view().Tokens(start, tokens);
    append.v = v.view().Tokens(start, tokens);
    return client.Append(append).status();
  }

  absl::StatusOr<ContextId> Upload(Client& client, int replicas = 1) const {
    const absl::StatusOr<ContextInfo> context = client.CreateContext(Spec(replicas));
    if (!context.ok()) return context.status();
    const absl::Status appended = Append(client, context->id, 0, kTokens);
    if (!appended.ok()) return appended;
    return context->id;
  }

  // Tries again until the service has a worker, for 20 s at most.
  absl::StatusOr<ContextId> UploadWhenReady(Client& client) const {
    const absl::Time end = absl::Now() + absl::Seconds(20);
    absl::StatusOr<ContextId> context = Upload(client);
    while (!context.ok() && absl::Now() < end) {
      absl::SleepFor(absl::Milliseconds(20));
      context = Upload(client);
    }
    return context;
  }

  Tensor q, k, v;
  std::vector<ReferenceAnswer> expected;
};

}  // namespace annulus::test
