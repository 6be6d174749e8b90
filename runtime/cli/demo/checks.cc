#include "runtime/cli/demo/checks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <vector>

#include "attention/kv_view.h"
#include "attention/reference/reference.h"
#include "base/check.h"
#include "base/thread_pool.h"

namespace annulus {
namespace {

// One KV head of the whole context.
class HeadOfContext {
 public:
  HeadOfContext(const DemoData& data, int kv_head)
      : k_(data.Keys({0, data.tokens()}, {kv_head, 1})),
        v_(data.Values({0, data.tokens()}, {kv_head, 1})),
        table_(DType::kBF16, kv_head, 1, kDemoDim, kDemoDim, BlocksOf(data.tokens())) {
    for (int64_t block = 0; block < table_.blocks(); ++block) {
      table_.Set(kv_head, block,
                 {k_.view().Row(block * kBlockTokens, 0), v_.view().Row(block * kBlockTokens, 0),
                  kDemoDim, kDemoDim});
    }
  }

  const KvTable& table() const { return table_; }

 private:
  Tensor k_;
  Tensor v_;
  KvTable table_;
};

}  // namespace

void AddToRecall(const DemoData& data, const Pattern& pattern, int association, int64_t position,
                 const float* out, Recall* recall) {
  bool seen = false;
  for (int head = 0; head < kDemoHeads; ++head) {
    const bool visible = pattern.Allows(head / kDemoGroup, position, data.Position(association));
    const bool found = data.IsValueOf(association, out + head * kDemoDim);
    seen |= visible;
    ++recall->asked;
    recall->visible += visible;
    recall->found += visible && found;
    recall->stray += !visible && found;
  }
  recall->keys_seen += seen;
}

Tensor CopyToken(const TensorView& tensor, int64_t token) {
  Tensor copy(tensor.dtype, 1, tensor.heads, tensor.dim);
  const size_t head_bytes = static_cast<size_t>(tensor.dim) * SizeOf(tensor.dtype);
  for (int64_t head = 0; head < tensor.heads; ++head) {
    std::memcpy(copy.data() + static_cast<size_t>(head) * head_bytes, tensor.Row(token, head),
                head_bytes);
  }
  return copy;
}

absl::Status CompareWithOracle(const DemoData& data, float scale, absl::Span<SampledRow> rows) {
  ThreadPool pool(0);
  std::mutex mutex;
  absl::Status status;
  for (int kv_head = 0; kv_head < kDemoKvHeads; ++kv_head) {
    const HeadOfContext context(data, kv_head);
    pool.ParallelFor(static_cast<int64_t>(rows.size()) * kDemoGroup, [&](int64_t i) {
      SampledRow& row = rows[static_cast<size_t>(i / kDemoGroup)];
      const int head = kv_head * kDemoGroup + static_cast<int>(i % kDemoGroup);
      const absl::StatusOr<ReferenceAnswer> expected =
          ReferenceRow(row.q.view().Row(0, head), row.q.dtype(), context.table(), row.kv_tokens,
                       *row.pattern, kv_head, row.position, scale);
      const std::lock_guard<std::mutex> lock(mutex);
      status.Update(expected.status());
      if (!expected.ok()) return;
      const RowError error =
          ErrorOf(row.out.f32() + head * kDemoDim, row.lse.f32()[head], *expected);
      row.out_error = std::max(row.out_error, error.out);
      row.lse_error = std::max(row.lse_error, error.lse);
    });
  }
  return status;
}

}  // namespace annulus
