// annulus_kernels: the CPU backend beside what this machine can do at most, in one run.
//   prefill: causal attention, FLOP = 4·visited pairs·d per query head, over the fp32 FMA peak
//   decode:  one query token, bytes = K + V once, over the read bandwidth
// Errors beside each timing are max over sampled rows of ‖out − ref‖/‖ref‖ against float64 on the
// same (rounded) inputs. Medians of alternating pairs, so that a busy host slows both sides.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "attention/backend.h"
#include "attention/cpu/machine_peaks.h"
#include "attention/reference/reference.h"
#include "base/check.h"
#include "base/rng.h"
#include "base/thread_pool.h"
#include "hwy/targets.h"

namespace annulus {
namespace {

constexpr uint64_t kSeed = 2026;

struct Options {
  int threads = 0;
  int repeat = 7;
  int64_t prefill_tokens = 8192;
  int64_t prefill_heads = 4;
  int64_t prefill_dim = 128;
  int64_t decode_tokens = int64_t{1} << 20;
  int64_t decode_heads = 8;
  int64_t decode_kv_heads = 4;
  int64_t decode_dim = 64;
};

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Normal values, each drawn once from a table of 4,099 (a prime) and reused with moving offsets:
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

struct Case {
  Tensor q;
  Tensor k;
  Tensor v;
  KvTable kv;
  BlockSet keys;
  Partial partial;
  AttendArgs args;
};

// The last `rows` tokens of a context attend to it; K and V lie in pages, as in the store: a page
// is [64, dim] of one head.
Case MakeCase(ThreadPool* pool, const Pattern& pattern, DType dtype, int64_t tokens, int64_t rows,
              int64_t heads, int64_t kv_heads, int64_t dim) {
  Rng rng(kSeed);
  const int64_t blocks = BlocksOf(tokens);
  Case c;
  c.q = RandomTensor(&rng, pool, dtype, rows, heads, dim);
  c.k = RandomTensor(&rng, pool, dtype, kv_heads * blocks * kBlockTokens, 1, dim);
  c.v = RandomTensor(&rng, pool, dtype, kv_heads * blocks * kBlockTokens, 1, dim);
  c.kv = KvTable(dtype, 0, static_cast<int>(kv_heads), static_cast<int>(dim), static_cast<int>(dim),
                 blocks);
  const auto stride = static_cast<int32_t>(dim);
  for (int64_t head = 0; head < kv_heads; ++head) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t row = (head * blocks + block) * kBlockTokens;
      c.kv.Set(static_cast<int>(head), block,
               {c.k.view().Row(row, 0), c.v.view().Row(row, 0), stride, stride});
    }
  }
  c.keys = BlockSet::Range(0, blocks);
  c.partial = Partial(rows, heads, dim);
  c.args.q = c.q;
  c.args.q_ranges = {{tokens - rows, tokens}};
  c.args.heads = {0, static_cast<int>(heads)};
  c.args.group = static_cast<int>(heads / kv_heads);
  c.args.kv_tokens = tokens;
  c.args.pattern = &pattern;
  c.args.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  return c;
}

double AttendSeconds(Backend* backend, Case* c) {
  SetIdentity(c->partial.view());
  c->args.kv = &c->kv;
  c->args.keys = &c->keys;
  c->args.into = c->partial.view();
  const double start = Seconds();
  const absl::Status status = backend->Attend(c->args);
  const double seconds = Seconds() - start;
  if (!status.ok()) std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  ANNULUS_CHECK(status.ok());
  return seconds;
}

double WorstError(const Case& c, ThreadPool* pool) {
  constexpr int kSamples = 8;
  std::vector<double> errors(kSamples);
  pool->ParallelFor(kSamples, [&](int64_t i) {
    Rng rng(kSeed + static_cast<uint64_t>(i));
    const int64_t row = rng.Between(0, c.q.tokens() - 1);
    const int64_t head = rng.Between(0, c.q.heads() - 1);
    const auto answer = ReferenceRow(c.q.view().Row(row, head), c.q.dtype(), c.kv, c.args.kv_tokens,
                                     *c.args.pattern, static_cast<int>(head) / c.args.group,
                                     c.args.q_ranges[0].begin + row, c.args.scale);
    ANNULUS_CHECK(answer.ok());
    const auto* out = reinterpret_cast<const float*>(c.partial.out().view().Row(row, head));
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

void Prefill(Backend* backend, ThreadPool* pool, const Options& options, DType dtype) {
  const int64_t n = options.prefill_tokens;
  const int64_t heads = options.prefill_heads;
  const Pattern pattern = *Pattern::Parse("causal", static_cast<int>(heads));
  Case c = MakeCase(pool, pattern, dtype, n, n, heads, heads, options.prefill_dim);
  const double pairs = static_cast<double>(n) * static_cast<double>(n + 1) / 2;
  const double flop = 4 * pairs * static_cast<double>(options.prefill_dim * heads);
  std::vector<double> rates;
  std::vector<double> ratios;
  for (int i = 0; i < std::max(1, options.repeat / 2); ++i) {
    const double peak = MeasureFmaPeak(options.threads);
    rates.push_back(flop / AttendSeconds(backend, &c));
    ratios.push_back(rates.back() / peak);
  }
  std::printf(
      "prefill %-4s causal %ld tokens, %ld heads, d %ld: %7.1f GFLOP/s = %5.1f%% of peak, "
      "error %.1e\n",
      std::string(Name(dtype)).c_str(), n, heads, options.prefill_dim, Median(rates) / 1e9,
      100 * Median(ratios), WorstError(c, pool));
}

void Decode(Backend* backend, ThreadPool* pool, ReadProbe* probe, const Options& options,
            DType dtype) {
  const Pattern pattern = *Pattern::Parse("causal", static_cast<int>(options.decode_kv_heads));
  Case c = MakeCase(pool, pattern, dtype, options.decode_tokens, 1, options.decode_heads,
                    options.decode_kv_heads, options.decode_dim);
  const double bytes = static_cast<double>(c.k.size_bytes() + c.v.size_bytes());
  std::vector<double> rates;
  std::vector<double> ratios;
  for (int i = 0; i < options.repeat; ++i) {
    const double read = probe->Measure();
    rates.push_back(bytes / AttendSeconds(backend, &c));
    ratios.push_back(rates.back() / read);
  }
  std::printf(
      "decode  %-4s causal %ld tokens, %ld/%ld heads, d %ld: %6.2f GB/s = %5.1f%% of read, "
      "error %.1e\n",
      std::string(Name(dtype)).c_str(), options.decode_tokens, options.decode_heads,
      options.decode_kv_heads, options.decode_dim, Median(rates) / 1e9, 100 * Median(ratios),
      WorstError(c, pool));
}

// Restricts the kernels and the peaks to one instruction set, by Highway's name for it.
bool ChooseTarget(absl::string_view name) {
  for (int64_t left = hwy::SupportedTargets(); left != 0; left &= left - 1) {
    const int64_t target = left & ~(left - 1);
    if (name != hwy::TargetName(target)) continue;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    return true;
  }
  return false;
}

bool ParseFlag(absl::string_view flag, absl::string_view text, Options* options) {
  const auto set = [&](auto* field) {
    int64_t value = 0;
    if (!absl::SimpleAtoi(text, &value) || value < 0) return false;
    *field = static_cast<std::remove_pointer_t<decltype(field)>>(value);
    return true;
  };
  if (flag == "--target") return ChooseTarget(text);
  if (flag == "--threads") return set(&options->threads);
  if (flag == "--repeat") return set(&options->repeat) && options->repeat > 0;
  if (flag == "--prefill-tokens") return set(&options->prefill_tokens);
  if (flag == "--prefill-heads") return set(&options->prefill_heads);
  if (flag == "--prefill-dim") return set(&options->prefill_dim);
  if (flag == "--decode-tokens") return set(&options->decode_tokens);
  if (flag == "--decode-heads") return set(&options->decode_heads);
  if (flag == "--decode-kv-heads") return set(&options->decode_kv_heads);
  if (flag == "--decode-dim") return set(&options->decode_dim);
  return false;
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 < argc && ParseFlag(argv[i], argv[i + 1], &options)) continue;
    std::fprintf(stderr,
                 "flag '%s': expected --threads, --repeat, --prefill-{tokens,heads,dim} or "
                 "--decode-{tokens,heads,kv-heads,dim} and a number (0 tokens: leave it out), or "
                 "--target and an instruction set that this machine has, as AVX2\n",
                 argv[i]);
    return 2;
  }
  const auto backend = *MakeBackend("cpu", options.threads);
  ThreadPool pool(options.threads);
  ReadProbe probe(options.threads, size_t{1} << 29);
  std::printf("target %s, %d threads, seed %lu\n", backend->capabilities().detail.c_str(),
              pool.threads(), kSeed);
  std::printf("fp32 FMA peak %.1f GFLOP/s, read %.2f GB/s\n", MeasureFmaPeak(options.threads) / 1e9,
              probe.Measure() / 1e9);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (options.prefill_tokens > 0) Prefill(backend.get(), &pool, options, dtype);
  }
  for (DType dtype : {DType::kBF16, DType::kF16}) {
    if (options.decode_tokens > 0) Decode(backend.get(), &pool, &probe, options, dtype);
  }
  return 0;
}

}  // namespace
}  // namespace annulus

int main(int argc, char** argv) {
  return annulus::Main(argc, argv);
}
