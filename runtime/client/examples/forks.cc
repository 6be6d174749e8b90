// A batch of continuations of one prompt: the prompt is uploaded once, forked, and all forks decode
// in one Step per token. The prompt's blocks are stored once. Usage: forks [HOST:PORT …]
// (connect.h)
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include <annulus/client.h>

#include "connect.h"

namespace {

constexpr int kHeads = 8, kKvHeads = 2, kDim = 32, kPrompt = 640, kForks = 6, kSteps = 5;

annulus::TensorView View(const std::vector<float>& values, int64_t tokens, int64_t heads) {
  return annulus::TensorView::Contiguous(values.data(), annulus::DType::kF32, tokens, heads, kDim);
}

// The first failure of what `Run` asked for.
absl::Status Run(annulus::Client* client) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const auto rows = [&](int64_t tokens, int64_t heads) {
    std::vector<float> values(static_cast<size_t>(tokens * heads * kDim));
    for (float& value : values) value = normal(random);
    return values;
  };

  const annulus::ContextSpec spec{
      .heads = kHeads, .kv_heads = kKvHeads, .head_dim = kDim, .v_head_dim = kDim};
  const auto prompt = client->CreateContext(spec);
  if (!prompt.ok()) return prompt.status();
  const std::vector<float> k = rows(kPrompt, kKvHeads), v = rows(kPrompt, kKvHeads);
  const auto uploaded = client->Append(
      {.context = prompt->id, .k = View(k, kPrompt, kKvHeads), .v = View(v, kPrompt, kKvHeads)});
  if (!uploaded.ok()) return uploaded.status();

  std::vector<annulus::ContextId> forks;
  for (int i = 0; i < kForks; ++i) {
    const auto fork = client->Fork({.context = prompt->id, .tokens = {}});
    if (!fork.ok()) return fork.status();
    forks.push_back(fork->id);
  }
  for (int step = 0; step < kSteps; ++step) {
    std::vector<std::vector<float>> tensors;  // what the views of the batch point to
    std::vector<annulus::StepRequest> batch(kForks);
    for (int i = 0; i < kForks; ++i) {
      batch[i].context = forks[i];
      batch[i].start = kPrompt + step;
      batch[i].k = View(tensors.emplace_back(rows(1, kKvHeads)), 1, kKvHeads);
      batch[i].v = View(tensors.emplace_back(rows(1, kKvHeads)), 1, kKvHeads);
      batch[i].q = View(tensors.emplace_back(rows(1, kHeads)), 1, kHeads);
    }
    for (const auto& result : client->Step(batch)) {
      if (!result.ok()) return result.status();
    }
  }
  for (const annulus::ContextId fork : forks) {
    const auto info = client->Describe(fork);
    if (!info.ok()) return info.status();
    if (info->tokens[0] != kPrompt + kSteps) return absl::InternalError("a fork lost tokens");
    if (absl::Status released = client->Release(fork); !released.ok()) return released;
  }
  const auto left = client->Describe(prompt->id);
  if (!left.ok()) return left.status();
  if (left->tokens[0] != kPrompt) return absl::InternalError("a fork changed its parent");
  std::printf("%d forks of %d tokens decoded %d steps each\n", kForks, kPrompt, kSteps);
  return client->Release(prompt->id);
}

}  // namespace

int main(int argc, char** argv) {
  auto client = ConnectByArguments(argc, argv, {.workers = 2});
  const absl::Status status = client.ok() ? Run(client->get()) : client.status();
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
