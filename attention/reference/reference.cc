#include "attention/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <utility>

#include "attention/attend_args.h"
#include "base/status.h"
#include "base/thread_pool.h"

namespace annulus {
namespace {

constexpr int kDimMax = 576;

struct AllowedKey {
  int64_t position = 0;
  double score = 0;
};

// Four sums, since one would wait for itself at every addition.
double Dot(const std::vector<double>& a, const std::vector<float>& b) {
  double sums[4] = {};
  for (size_t c = 0; c < a.size(); ++c) sums[c % 4] += a[c] * static_cast<double>(b[c]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

void ReadRow(const std::byte* rows, int64_t row_stride, DType dtype, int64_t position,
             std::vector<float>* out) {
  const int64_t offset = (position % kBlockTokens) * row_stride;
  Convert(rows + static_cast<size_t>(offset) * SizeOf(dtype), dtype, out->data(), DType::kF32,
          static_cast<int64_t>(out->size()));
}

// Appends the allowed keys of one block with their scores.
absl::Status ScoreBlock(const std::vector<double>& q, const KvTable& kv, int64_t kv_tokens,
                        const Pattern& pattern, int kv_head, int64_t position, int64_t block,
                        double scale, std::vector<AllowedKey>* keys) {
  const int64_t end = std::min((block + 1) * kBlockTokens, kv_tokens);
  std::vector<float> key(static_cast<size_t>(kv.head_dim()));
  for (int64_t k = block * kBlockTokens; k < end; ++k) {
    if (!pattern.Allows(kv_head, position, k)) continue;
    const KvPage page = block < kv.blocks() ? kv.page(kv_head, block) : KvPage();
    if (page.k == nullptr || page.v == nullptr) return MissingPage(kv_head, block);
    ReadRow(page.k, page.k_row_stride, kv.dtype(), k, &key);
    keys->push_back({k, scale * Dot(q, key)});
  }
  return absl::OkStatus();
}

ReferenceAnswer Softmax(const KvTable& kv, int kv_head, const std::vector<AllowedKey>& keys) {
  ReferenceAnswer answer;
  answer.out.assign(static_cast<size_t>(kv.v_head_dim()), 0.0);
  answer.lse = -std::numeric_limits<double>::infinity();
  if (keys.empty()) return answer;
  for (const AllowedKey& key : keys) answer.lse = std::max(answer.lse, key.score);
  const double top = answer.lse;
  double sum = 0;
  std::vector<float> value(answer.out.size());
  for (const AllowedKey& key : keys) {
    const double weight = std::exp(key.score - top);
    sum += weight;
    const KvPage& page = kv.page(kv_head, key.position / kBlockTokens);
    ReadRow(page.v, page.v_row_stride, kv.dtype(), key.position, &value);
    for (size_t c = 0; c < value.size(); ++c) answer.out[c] += weight * value[c];
  }
  for (double& x : answer.out) x /= sum;
  answer.lse = top + std::log(sum);
  return answer;
}

// 0/0 is no error, a difference to nothing an infinite one; NaN is the worst.
double Ratio(double difference, double norm) {
  if (difference == 0) return 0;
  return std::isnan(difference) || norm == 0 ? std::numeric_limits<double>::infinity()
                                             : difference / norm;
}

class ReferenceBackend final : public Backend {
 public:
  explicit ReferenceBackend(int threads) : pool_(threads) {
    capabilities_.name = "reference";
    capabilities_.detail = "float64";
    capabilities_.dtypes = {DType::kF32, DType::kF16, DType::kBF16};
    capabilities_.head_dim_max = kDimMax;
    capabilities_.head_dim_multiple = 1;
  }

  const BackendCapabilities& capabilities() const override { return capabilities_; }

  absl::Status AttendBatch(absl::Span<const AttendArgs> batch) override {
    for (const AttendArgs& args : batch) ANNULUS_RETURN_IF_ERROR(AttendOne(args));
    return absl::OkStatus();
  }

 private:
  absl::Status AttendOne(const AttendArgs& args) {
    ANNULUS_RETURN_IF_ERROR(CheckAttendArgs(args, capabilities_));
    std::vector<int64_t> positions;
    for (const TokenRange& range : args.q_ranges) {
      for (int64_t p = range.begin; p < range.end; ++p) positions.push_back(p);
    }
    std::mutex mutex;
    absl::Status status;
    std::atomic<bool> failed{false};
    pool_.ParallelFor(args.q.tokens * args.heads.count, [&](int64_t i) {
      if (failed.load(std::memory_order_relaxed)) return;
      absl::Status row = AttendRow(args, positions, i / args.heads.count, i % args.heads.count);
      if (row.ok()) return;
      failed.store(true, std::memory_order_relaxed);
      const std::lock_guard<std::mutex> lock(mutex);
      status.Update(row);
    });
    return status;
  }

  static absl::Status AttendRow(const AttendArgs& args, const std::vector<int64_t>& positions,
                                int64_t row, int64_t head) {
    if (args.cancel != nullptr && args.cancel->load(std::memory_order_relaxed)) {
      return AttendCancelled();
    }
    const int query_head = args.heads.first + static_cast<int>(head);
    const int kv_head = query_head / args.group;
    const Pattern& pattern = args.pattern->Member(query_head % args.group);
    ANNULUS_ASSIGN_OR_RETURN(
        const ReferenceAnswer answer,
        ReferenceRow(args.q.Row(row, head), args.q.dtype, *args.kv, args.kv_tokens, pattern,
                     kv_head, positions[static_cast<size_t>(row)], args.scale, args.keys));
    const int64_t dim = args.into.v_head_dim;
    const int64_t at = row * args.into.heads + head;
    std::vector<float> out(answer.out.begin(), answer.out.end());
    auto lse = static_cast<float>(answer.lse);
    if (std::isinf(lse) && std::isfinite(answer.lse)) lse = std::nanf("");  // beyond f32
    Merge({args.into.out + at * dim, args.into.lse + at, 1, 1, dim}, {out.data(), &lse, 1, 1, dim});
    return absl::OkStatus();
  }

  ThreadPool pool_;
  BackendCapabilities capabilities_;
};

}  // namespace

absl::StatusOr<ReferenceAnswer> ReferenceRow(const std::byte* q, DType q_dtype, const KvTable& kv,
                                             int64_t kv_tokens, const Pattern& pattern, int kv_head,
                                             int64_t position, float scale, const BlockSet* keys) {
  std::vector<float> q_f32(static_cast<size_t>(kv.head_dim()));
  Convert(q, q_dtype, q_f32.data(), DType::kF32, kv.head_dim());
  const std::vector<double> q_f64(q_f32.begin(), q_f32.end());
  const BlockSet all = BlockSet::Range(0, BlocksOf(kv_tokens));
  std::vector<AllowedKey> allowed;
  for (const BlockRun& run : (keys != nullptr ? *keys : all).runs()) {
    for (int64_t i = 0; i < run.count; ++i) {
      const int64_t block = run.first + i * run.step;
      if (block >= BlocksOf(kv_tokens)) break;
      ANNULUS_RETURN_IF_ERROR(
          ScoreBlock(q_f64, kv, kv_tokens, pattern, kv_head, position, block, scale, &allowed));
    }
  }
  return Softmax(kv, kv_head, allowed);
}

RowError ErrorOf(const float* out, float lse, const ReferenceAnswer& expected) {
  double difference = 0;
  double norm = 0;
  for (size_t c = 0; c < expected.out.size(); ++c) {
    const double d = out[c] - expected.out[c];
    difference += d * d;
    norm += expected.out[c] * expected.out[c];
  }
  RowError error;
  error.out = Ratio(std::sqrt(difference), std::sqrt(norm));
  if (lse == expected.lse) return error;  // two infinities included
  error.lse = std::isinf(expected.lse)
                  ? std::numeric_limits<double>::infinity()
                  : Ratio(std::abs(lse - expected.lse), std::max(1.0, std::abs(expected.lse)));
  return error;
}

std::unique_ptr<Backend> MakeReferenceBackend(int threads) {
  return std::make_unique<ReferenceBackend>(threads);
}

}  // namespace annulus
