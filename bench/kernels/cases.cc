#include "bench/kernels/cases.h"

#include "absl/strings/str_cat.h"

namespace annulus {
namespace {

constexpr int64_t kPrefillTokens = 8192;
constexpr int64_t kSparseTokens = 16384;
constexpr int64_t kDecodeTokens = int64_t{1} << 20;

KernelShape Prefill(std::string name, std::string pattern, DType dtype, int64_t tokens, int dim) {
  KernelShape shape;
  shape.name = std::move(name);
  shape.pattern = std::move(pattern);
  shape.dtype = dtype;
  shape.contexts = {tokens};
  shape.q_tokens = tokens;
  shape.heads = shape.kv_heads = 2;
  shape.dim = dim;
  return shape;
}

KernelShape Decode(std::string name, std::vector<int64_t> contexts, DType dtype, int heads,
                   int kv_heads, int dim) {
  KernelShape shape;
  shape.name = std::move(name);
  shape.dtype = dtype;
  shape.contexts = std::move(contexts);
  shape.heads = heads;
  shape.kv_heads = kv_heads;
  shape.dim = dim;
  return shape;
}

std::string PeerWorkload(const KernelShape& shape) {
  return absl::StrCat(shape.q_tokens == 1 ? "last" : "causal", " ", Name(shape.dtype), " ",
                      shape.tokens(), " ", shape.heads, " ", shape.kv_heads, " ", shape.dim);
}

}  // namespace

std::vector<BenchCase> BenchCases() {
  std::vector<BenchCase> cases;
  const auto add = [&cases](KernelShape shape, bool with_peer) {
    const std::string workload = with_peer ? PeerWorkload(shape) : "";
    cases.push_back({std::move(shape), workload, std::nullopt});
  };
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    add(Prefill("prefill-causal-8k", "causal", dtype, kPrefillTokens, 128), true);
    add(Prefill("prefill-causal-8k", "causal", dtype, kPrefillTokens, 64), true);
  }
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    // Rates go by visited pairs, so that these say what sparsity and masks cost: a tenth of all
    // blocks, a twentieth of them, and blocks that are each seen in part, every other 16 keys.
    add(Prefill("prefill-causal-16k", "causal", dtype, kSparseTokens, 128), false);
    add(Prefill("prefill-s2-16k", "s2(64,4,6)", dtype, kSparseTokens, 128), false);
    add(Prefill("prefill-s2-16k", "s2(64,4,16)", dtype, kSparseTokens, 128), false);
    add(Prefill("prefill-partial-16k", "s2(16,1,2)", dtype, kSparseTokens, 128), false);
  }
  // Lists: S2's blocks as data beside S2 itself, and a tenth of all blocks.
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const KernelShape s2 = Prefill("prefill-s2-16k", "s2(64,4,16)", dtype, kSparseTokens, 128);
    KernelShape list = s2;
    list.name = "prefill-list-16k";
    list.pattern = "list(x) & causal";
    list.listed = s2.pattern;
    add(list, false);
    cases.back().beside = s2;
    list.name = "prefill-tenth-16k";
    list.listed = "tenth";
    add(list, false);
    // Each query's own blocks, as MoBA's: what neighbours see has little in common.
    list.name = "prefill-queries-16k";
    list.listed = "queries:2";
    add(list, false);
  }
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF16}) {
    add(Decode("decode-1m", {kDecodeTokens}, dtype, 8, 4, 64), true);
  }
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    add(Decode("decode-1m", {kDecodeTokens}, dtype, 32, 8, 128), true);
  }
  // Blocks that lie apart from each other: a stride of 16 of them, and a tenth at random.
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    KernelShape scattered = Decode("decode-s2-1m", {kDecodeTokens}, dtype, 32, 8, 128);
    scattered.pattern = "s2(64,16,16)";
    add(scattered, false);
    scattered.name = "decode-tenth-1m";
    scattered.pattern = "list(x) & causal";
    scattered.listed = "tenth";
    add(scattered, false);
  }
  // The same tokens in 16 contexts of the same length, and of lengths from 1 to 2^15 blocks.
  std::vector<int64_t> ragged;
  for (int i = 0; i < 12; ++i) ragged.push_back(int64_t{64} << i);
  while (ragged.size() < 16) ragged.push_back((kDecodeTokens / 4 - (int64_t{64} << 12) + 64) / 4);
  const KernelShape uniform = Decode("decode-uniform", std::vector<int64_t>(16, kDecodeTokens / 64),
                                     DType::kBF16, 32, 8, 128);
  add(uniform, false);
  add(Decode("decode-ragged", ragged, DType::kBF16, 32, 8, 128), false);
  cases.back().beside = uniform;
  return cases;
}

}  // namespace annulus
