#include "bench/kernels/kernel_case.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <utility>

#include "attention/reference/reference.h"
#include "base/check.h"
#include "base/rng.h"
#include "bench/kernels/listed.h"

namespace annulus {
namespace {

constexpr uint64_t kSeed = 2026;

// Normal values, each drawn once into a table of 4,099 (a prime) and reused with moving offsets:
// a million-token context would else take longer to draw than to attend to.
Tensor RandomTensor(Rng* rng, ThreadPool* pool, DType dtype, int64_t tokens, int64_t heads,
                    int64_t dim) {
  constexpr int64_t kTable = 4099;
  std::vector<float> table(static_cast<size_t>(2 * kTable));
  for (int64_t i = 0; i < kTable; ++i) table[i] = table[i + kTable] = rng->Normal();
  const uint64_t salt = rng->Next();
  Tensor tensor(dtype, tokens, heads, dim);
  pool->ParallelFor(tokens * heads, [&](int64_t row) {
    const auto at = static_cast<int64_t>(Rng(salt + static_cast<uint64_t>(row)).Below(kTable));
    Convert(&table[static_cast<size_t>(at)], DType::kF32,
            tensor.data() + static_cast<size_t>(row * dim) * SizeOf(dtype), dtype, dim);
  });
  return tensor;
}

int64_t StoredRows(const KernelShape& shape) {
  int64_t blocks = 0;
  for (const int64_t tokens : shape.contexts) blocks += BlocksOf(tokens);
  return 2 * shape.kv_heads * blocks * kBlockTokens;
}

Pattern PatternOf(const KernelShape& shape) {
  const Pattern pattern = *Pattern::Parse(shape.pattern, shape.kv_heads);
  if (shape.listed.empty()) return pattern;
  return BindListed(pattern, shape.listed, shape.heads,
                    {shape.tokens() - shape.q_tokens, shape.tokens()});
}

}  // namespace

int64_t KernelShape::tokens() const {
  return std::accumulate(contexts.begin(), contexts.end(), int64_t{0});
}

int64_t KernelShape::kv_bytes() const {
  return 2 * tokens() * kv_heads * dim * static_cast<int64_t>(SizeOf(dtype));
}

double KernelCase::read_bytes() const {
  const auto rows = static_cast<double>(shape_.q_tokens * shape_.heads / shape_.kv_heads);
  return 2.0 * static_cast<double>(pairs_.work) / rows * shape_.dim *
         static_cast<double>(SizeOf(shape_.dtype));
}

KernelCase::KernelCase(KernelShape shape, ThreadPool* pool)
    : shape_(std::move(shape)), pattern_(PatternOf(shape_)) {
  Rng rng(kSeed);
  kv_ = RandomTensor(&rng, pool, shape_.dtype, StoredRows(shape_), 1, shape_.dim);
  contexts_.resize(shape_.contexts.size());
  batch_.resize(shape_.contexts.size());
  int64_t row = 0;
  for (size_t i = 0; i < contexts_.size(); ++i) {
    Context& context = contexts_[i];
    const int64_t tokens = shape_.contexts[i];
    const int64_t blocks = BlocksOf(tokens);
    const TokenRange q_range{tokens - shape_.q_tokens, tokens};
    context.q = RandomTensor(&rng, pool, shape_.dtype, shape_.q_tokens, shape_.heads, shape_.dim);
    context.kv = KvTable(shape_.dtype, 0, shape_.kv_heads, shape_.dim, shape_.dim, blocks);
    context.keys = BlockSet::Range(0, blocks);
    context.partial = Partial(shape_.q_tokens, shape_.heads, shape_.dim);
    for (int head = 0; head < shape_.kv_heads; ++head) {
      for (int64_t block = 0; block < blocks; ++block, row += 2 * kBlockTokens) {
        context.kv.Set(head, block,
                       {kv_.view().Row(row, 0), kv_.view().Row(row + kBlockTokens, 0), shape_.dim,
                        shape_.dim});
      }
      const PairCount pairs = pattern_.CountPairs(head, q_range, tokens);
      pairs_.visited += pairs.visited * (shape_.heads / shape_.kv_heads);
      pairs_.work += pairs.work * (shape_.heads / shape_.kv_heads);
    }
    AttendArgs& args = batch_[i];
    args.q = context.q;
    args.q_ranges = {q_range};
    args.heads = {0, shape_.heads};
    args.group = shape_.heads / shape_.kv_heads;
    args.kv_tokens = tokens;
    args.kv = &context.kv;
    args.pattern = &pattern_;
    args.keys = &context.keys;
    args.scale = 1.0f / std::sqrt(static_cast<float>(shape_.dim));
    args.into = context.partial.view();
  }
}

double KernelCase::Run(Backend* backend) {
  for (const AttendArgs& args : batch_) {
    const PartialView& into = args.into;
    std::fill_n(into.out, into.rows * into.heads * into.v_head_dim, std::nanf(""));
    SetIdentity(into);
  }
  const auto start = std::chrono::steady_clock::now();
  const absl::Status status = backend->AttendBatch(batch_);
  const auto end = std::chrono::steady_clock::now();
  if (!status.ok()) std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  ANNULUS_CHECK(status.ok());
  return std::chrono::duration<double>(end - start).count();
}

double KernelCase::WorstError(ThreadPool* pool) const {
  constexpr int kSamples = 8;
  std::vector<double> errors(kSamples);
  pool->ParallelFor(kSamples, [&](int64_t i) {
    Rng rng(kSeed + static_cast<uint64_t>(i));
    const AttendArgs& args = batch_[rng.Below(batch_.size())];
    const int64_t row = rng.Between(0, args.q.tokens - 1);
    const int64_t head = rng.Between(0, args.q.heads - 1);
    const auto answer =
        ReferenceRow(args.q.Row(row, head), args.q.dtype, *args.kv, args.kv_tokens, pattern_,
                     static_cast<int>(head) / args.group, args.q_ranges[0].begin + row, args.scale);
    ANNULUS_CHECK(answer.ok());
    const float* out = args.into.out + (row * args.into.heads + head) * args.into.v_head_dim;
    double wrong = 0;
    double size = 0;
    for (size_t d = 0; d < answer->out.size(); ++d) {
      wrong += std::pow(out[d] - answer->out[d], 2);
      size += std::pow(answer->out[d], 2);
    }
    errors[static_cast<size_t>(i)] = std::sqrt(wrong / size);
  });
  return *std::max_element(errors.begin(), errors.end());
}

}  // namespace annulus
