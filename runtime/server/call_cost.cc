#include "runtime/server/call_cost.h"

#include <algorithm>
#include <cstdint>

namespace annulus {
namespace {

constexpr double kUnit = 1e6;
// Of messages, threads and a launch, whatever the call does.
constexpr double kCallMin = 10;
// Keys and values are read once for all queries: fewer of them are no cheaper.
constexpr int64_t kRowsMin = 16;
// In which a byte is received, cut, sent on and stored, about.
constexpr double kPerByte = 50 / kUnit;

double PairsCost(double pairs, int64_t head_dim) {
  return 2 * pairs * static_cast<double>(std::max<int64_t>(1, head_dim)) / kUnit;
}

double RowsCost(const TensorView& q, double keys) {
  const double rows = static_cast<double>(std::max(kRowsMin, q.tokens));
  return PairsCost(rows * static_cast<double>(std::max<int64_t>(1, q.heads)) * std::max(0.0, keys),
                   q.dim);
}

// Of looking at all of a track's rows.
double IndexCost(const IndexQueries& index, double keys) {
  return index.q.tokens > 0 ? RowsCost(index.q, keys) : 0;
}

double BytesOf(const TensorView& tensor) {
  return static_cast<double>(std::max<int64_t>(0, tensor.tokens)) *
         static_cast<double>(std::max<int64_t>(0, tensor.heads)) *
         static_cast<double>(std::max<int64_t>(0, tensor.dim)) *
         static_cast<double>(SizeOf(tensor.dtype));
}

}  // namespace

double CostOf(const AttendRequest& request, const CallSize& size) {
  const double chosen = IndexCost(request.index, static_cast<double>(request.kv_len));
  if (size.work_pairs > 0) {
    return kCallMin + chosen + PairsCost(static_cast<double>(size.work_pairs), request.q.dim);
  }
  const int64_t end = std::min(request.keys_end.value_or(request.kv_len), request.kv_len);
  return kCallMin + chosen +
         RowsCost(request.q, static_cast<double>(end) - static_cast<double>(request.keys_begin));
}

// As if each query saw all keys, of which it looks at summaries.
double CostOf(const SelectRequest& request, const CallSize&) {
  return kCallMin + RowsCost(request.q, static_cast<double>(request.kv_len));
}

// Each query looks at all keys twice.
double CostOf(const CompressRequest& request, const CallSize&) {
  return kCallMin + 2 * RowsCost(request.q, static_cast<double>(request.kv_len));
}

double CostOf(const AppendRequest& request, const CallSize&) {
  return kCallMin + kPerByte * (BytesOf(request.k) + BytesOf(request.v));
}

double CostOf(absl::Span<const StepRequest> steps) {
  double cost = kCallMin;
  for (const StepRequest& step : steps) {
    cost += kPerByte * (BytesOf(step.k) + BytesOf(step.v));
    if (step.q.tokens > 0) {
      const double keys = static_cast<double>(step.start) + static_cast<double>(step.k.tokens);
      cost += RowsCost(step.q, keys) + IndexCost(step.index, keys);
    }
  }
  return cost;
}

}  // namespace annulus
