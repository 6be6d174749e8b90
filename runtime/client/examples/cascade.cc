// Cascade: a prefix that many sequences share is attended where it lies, each sequence's own tail
// here, and the two are merged. Shows that the answer is that of the whole sequence in a context of
// its own. Usage: cascade [HOST:PORT …] (connect.h), without it with a service inside this process.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include <annulus/client.h>

#include "connect.h"

namespace {

constexpr int64_t kHeads = 4, kDim = 64, kPrefix = 5000, kTail = 100;

std::vector<float> Random(int64_t tokens) {
  static std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(tokens * kHeads * kDim));
  for (float& value : values) value = normal(generator);
  return values;
}

annulus::TensorView View(const std::vector<float>& values) {
  return annulus::TensorView::Contiguous(values.data(), annulus::DType::kF32,
                                         static_cast<int64_t>(values.size()) / (kHeads * kDim),
                                         kHeads, kDim);
}

// The tail's causal attention among itself, with its lse: what an engine's own kernel does.
void AttendHere(const std::vector<float>& q, const std::vector<float>& k,
                const std::vector<float>& v, annulus::Tensor* out, annulus::Tensor* lse) {
  for (int64_t token = 0; token < kTail; ++token) {
    for (int64_t head = 0; head < kHeads; ++head) {
      const auto at = [head](int64_t t) { return (t * kHeads + head) * kDim; };
      double sum = 0;
      std::vector<double> values(kDim);
      for (int64_t key = 0; key <= token; ++key) {
        double score = 0;
        for (int64_t c = 0; c < kDim; ++c) score += q[at(token) + c] * k[at(key) + c];
        const double weight = std::exp(score / std::sqrt(kDim));
        sum += weight;
        for (int64_t c = 0; c < kDim; ++c) values[c] += weight * v[at(key) + c];
      }
      for (int64_t c = 0; c < kDim; ++c) {
        out->f32()[at(token) + c] = static_cast<float>(values[c] / sum);
      }
      lse->f32()[token * kHeads + head] = static_cast<float>(std::log(sum));
    }
  }
}

absl::StatusOr<double> Difference(annulus::Client& client) {
  annulus::ContextSpec spec{.heads = kHeads,
                            .kv_heads = kHeads,
                            .head_dim = kDim,
                            .v_head_dim = kDim,
                            .dtype = annulus::DType::kF32};
  const auto prefix = client.CreateContext(spec);
  if (!prefix.ok()) return prefix.status();
  const std::vector<float> keys = Random(kPrefix), values = Random(kPrefix);
  const auto shared = client.Append({.context = prefix->id, .k = View(keys), .v = View(values)});
  if (!shared.ok()) return shared.status();

  // A sequence goes on after the prefix: its queries lie beyond the context's keys.
  const std::vector<float> q = Random(kTail), k = Random(kTail), v = Random(kTail);
  auto answer =
      client.Attend({.context = prefix->id, .q_start = kPrefix, .kv_len = kPrefix, .q = View(q)});
  if (!answer.ok()) return answer.status();
  annulus::Tensor out(annulus::DType::kF32, kTail, kHeads, kDim);
  annulus::Tensor lse(annulus::DType::kF32, kTail, kHeads, 1);
  AttendHere(q, k, v, &out, &lse);
  const absl::Status merged = annulus::Merge(out, lse, &answer->out, &answer->lse);
  if (!merged.ok()) return merged;

  const auto sequence = client.Fork({.context = prefix->id, .tokens = kPrefix});
  if (!sequence.ok()) return sequence.status();
  const auto appended =
      client.Append({.context = sequence->id, .start = kPrefix, .k = View(k), .v = View(v)});
  if (!appended.ok()) return appended.status();
  const auto whole = client.Attend(
      {.context = sequence->id, .q_start = kPrefix, .kv_len = kPrefix + kTail, .q = View(q)});
  if (!whole.ok()) return whole.status();
  double difference = 0;
  for (int64_t i = 0; i < kTail * kHeads * kDim; ++i) {
    const double apart = answer->out.f32()[i] - whole->out.f32()[i];
    difference = std::max(difference, std::fabs(apart));
  }
  return difference;
}

}  // namespace

int main(int argc, char** argv) {
  auto client = ConnectByArguments(argc, argv, {.workers = 2});
  if (!client.ok()) return std::fprintf(stderr, "%s\n", client.status().ToString().c_str()), 1;
  const absl::StatusOr<double> difference = Difference(**client);
  if (!difference.ok()) {
    return std::fprintf(stderr, "%s\n", difference.status().ToString().c_str()), 1;
  }
  std::printf("prefix there and tail here differ from the whole by %.1e at most\n", *difference);
  return *difference < 1e-5 ? 0 : 1;
}
