#include "bench/service/beside.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <numeric>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "annulus/dtype.h"
#include "base/rng.h"
#include "base/status.h"
#include "base/thread_pool.h"

namespace annulus {
namespace {

constexpr int kWarmUps = 20;        // steps
constexpr int kPrefills = 3;        // alone
constexpr int kPrefillsBeside = 3;  // at least

double ProcessorSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

Tensor RandomRows(int64_t tokens, const BesideShape& shape) {
  Tensor rows(DType::kBF16, tokens, shape.heads, shape.dim);
  Rng rng(1);
  auto* bits = reinterpret_cast<uint16_t*>(rows.data());
  // Random enough, and soon made.
  for (int64_t i = 0; i < tokens * shape.heads * shape.dim; ++i) {
    bits[i] = i < (1 << 20) ? F32ToBF16(rng.Normal()) : bits[i - (1 << 20) + 1];
  }
  return rows;
}

// A context of its own that goes with it.
class BenchContext {
 public:
  static absl::StatusOr<BenchContext> Create(Client& client, const BesideShape& shape,
                                             int64_t tokens) {
    ContextSpec spec;
    spec.heads = spec.kv_heads = shape.heads;
    spec.head_dim = spec.v_head_dim = shape.dim;
    ANNULUS_ASSIGN_OR_RETURN(const ContextInfo info, client.CreateContext(spec));
    BenchContext context(client, info.id, tokens);
    const Tensor rows = RandomRows(tokens, shape);
    AppendRequest request;
    request.context = info.id;
    request.k = request.v = rows;
    ANNULUS_RETURN_IF_ERROR(client.Append(request).status());
    return context;
  }
  BenchContext(BenchContext&& other) noexcept
      : client_(other.client_), id_(std::exchange(other.id_, 0)), tokens_(other.tokens_) {}
  BenchContext& operator=(BenchContext&&) = delete;
  ~BenchContext() {
    if (id_ != 0) (void)client_.Release(id_);
  }

  absl::Status Prefill(const Tensor& q) const {
    AttendRequest request;
    request.context = id_;
    request.q_start = tokens_ - q.view().tokens;
    request.kv_len = tokens_;
    request.q = q;
    request.pattern = "causal";
    return client_.Attend(request).status();
  }
  StepRequest Step(const Tensor& row) {
    StepRequest request;
    request.context = id_;
    request.start = tokens_++;
    request.k = request.v = request.q = row;
    return request;
  }

 private:
  BenchContext(Client& client, ContextId id, int64_t tokens)
      : client_(client), id_(id), tokens_(tokens) {}

  Client& client_;
  ContextId id_;
  int64_t tokens_;
};

// Steps of fresh contexts, one each period, until there were `steps` and `enough` says so.
absl::StatusOr<Samples> RunSteps(Client& client, const BesideShape& shape,
                                 const std::function<bool()>& enough) {
  const Tensor row = RandomRows(1, shape);
  std::vector<BenchContext> contexts;
  for (int i = 0; i < shape.decode_contexts; ++i) {
    ANNULUS_ASSIGN_OR_RETURN(BenchContext context,
                             BenchContext::Create(client, shape, shape.decode_tokens));
    contexts.push_back(std::move(context));
  }
  std::vector<double> seconds;
  absl::Time next = absl::Now();
  for (int i = -kWarmUps; i < shape.steps || !enough(); ++i) {
    std::vector<StepRequest> batch;
    for (BenchContext& context : contexts) batch.push_back(context.Step(row));
    absl::SleepFor(next - absl::Now());
    const absl::Time begin = absl::Now();
    for (const auto& result : client.Step(batch)) ANNULUS_RETURN_IF_ERROR(result.status());
    const absl::Time end = absl::Now();
    if (i >= 0) seconds.push_back(absl::ToDoubleSeconds(end - begin));
    next = std::max(next + shape.step_period, end);
  }
  return Samples(std::move(seconds));
}

}  // namespace

absl::StatusOr<BesideResult> MeasureBeside(Client& client, const BesideShape& shape) {
  const Tensor q = RandomRows(shape.prefill_queries, shape);
  ANNULUS_ASSIGN_OR_RETURN(const BenchContext context,
                           BenchContext::Create(client, shape, shape.prefill_tokens));
  ANNULUS_RETURN_IF_ERROR(context.Prefill(q));
  std::vector<double> prefills;
  const auto prefill = [&]() -> absl::Status {
    const absl::Time begin = absl::Now();
    ANNULUS_RETURN_IF_ERROR(context.Prefill(q));
    prefills.push_back(absl::ToDoubleSeconds(absl::Now() - begin));
    return absl::OkStatus();
  };
  for (int i = 0; i < kPrefills; ++i) ANNULUS_RETURN_IF_ERROR(prefill());
  const double prefill_alone_s = Median(std::exchange(prefills, {}));

  const double processor_before_s = ProcessorSeconds();
  const absl::Time begin = absl::Now();
  ANNULUS_ASSIGN_OR_RETURN(Samples alone, RunSteps(client, shape, [] { return true; }));
  const double steps_share = (ProcessorSeconds() - processor_before_s) /
                             absl::ToDoubleSeconds(absl::Now() - begin) / ThreadPool(0).threads();

  std::atomic<int> done = 0;
  std::atomic<bool> over = false;
  absl::Status failed;
  std::thread caller([&] {
    while (!over && failed.ok()) {
      failed = prefill();
      ++done;
    }
  });
  absl::StatusOr<Samples> beside = RunSteps(client, shape, [&] { return done >= kPrefillsBeside; });
  over = true;
  caller.join();
  ANNULUS_RETURN_IF_ERROR(failed);
  ANNULUS_RETURN_IF_ERROR(beside.status());
  // The last one was alone at its end.
  if (prefills.size() > 1) prefills.pop_back();
  return BesideResult{std::move(alone), *std::move(beside), steps_share, prefill_alone_s,
                      Median(prefills)};
}

absl::StatusOr<std::vector<double>> MeasureShares(Client& client, const BesideShape& shape,
                                                  int contexts, absl::Duration time) {
  const Tensor q = RandomRows(shape.prefill_queries, shape);
  std::vector<BenchContext> held;
  for (int i = 0; i < contexts; ++i) {
    ANNULUS_ASSIGN_OR_RETURN(BenchContext context,
                             BenchContext::Create(client, shape, shape.prefill_tokens));
    held.push_back(std::move(context));
  }
  std::vector<double> answered(held.size());
  std::vector<absl::Status> statuses(held.size());
  std::vector<std::thread> callers;
  const absl::Time until = absl::Now() + time;
  for (size_t i = 0; i < held.size(); ++i) {
    callers.emplace_back([&, i] {
      while (statuses[i].ok()) {
        const absl::Time begin = absl::Now();
        statuses[i] = held[i].Prefill(q);
        const absl::Time end = absl::Now();
        // Of one that the end cuts, what had its time before.
        if (end > until) {
          answered[i] += std::max(0.0, absl::FDivDuration(until - begin, end - begin));
          return;
        }
        ++answered[i];
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const absl::Status& status : statuses) ANNULUS_RETURN_IF_ERROR(status);
  const double mean =
      std::accumulate(answered.begin(), answered.end(), 0.0) / static_cast<double>(held.size());
  for (double& share : answered) share /= mean;
  return answered;
}

}  // namespace annulus
