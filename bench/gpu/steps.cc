#include "bench/gpu/steps.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "annulus/client.h"
#include "base/rng.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr int kWarmUps = 50;
constexpr int64_t kPieceTokens = 1 << 14;  // of one append

Tensor RandomRows(int64_t tokens, int heads, int dim, Rng& rng) {
  Tensor rows(DType::kBF16, tokens, heads, dim);
  auto* bits = reinterpret_cast<uint16_t*>(rows.data());
  // Random enough, and soon made.
  for (int64_t i = 0; i < tokens * heads * dim; ++i) {
    bits[i] = i < (1 << 20) ? F32ToBF16(rng.Normal()) : bits[i - (1 << 20) + 1];
  }
  return rows;
}

class Steps {
 public:
  Steps(const StepShape& shape, Client& client) : shape_(shape), client_(client) {}

  absl::Status Fill() {
    const int64_t piece = std::min(shape_.tokens, kPieceTokens);
    const Tensor k = RandomRows(piece, shape_.kv_heads, shape_.head_dim, rng_);
    const Tensor v = RandomRows(piece, shape_.kv_heads, shape_.head_dim, rng_);
    ContextSpec spec;
    spec.heads = shape_.heads;
    spec.kv_heads = shape_.kv_heads;
    spec.head_dim = spec.v_head_dim = shape_.head_dim;
    for (int i = 0; i < shape_.contexts; ++i) {
      ANNULUS_ASSIGN_OR_RETURN(const ContextInfo info, client_.CreateContext(spec));
      for (int64_t start = 0; start < shape_.tokens; start += piece) {
        const int64_t tokens = std::min(piece, shape_.tokens - start);
        AppendRequest request;
        request.context = info.id;
        request.start = start;
        request.k = k.view().Tokens(0, tokens);
        request.v = v.view().Tokens(0, tokens);
        ANNULUS_RETURN_IF_ERROR(client_.Append(request).status());
      }
      contexts_.push_back(info.id);
    }
    next_ = shape_.tokens;
    return absl::OkStatus();
  }

  absl::Status Run() {
    std::vector<StepRequest> batch;
    for (const ContextId context : contexts_) {
      StepRequest& step = batch.emplace_back();
      step.context = context;
      step.start = next_;
      step.q = q_.view();
      if (shape_.append) step.k = step.v = kv_.view();
    }
    next_ += shape_.append ? 1 : 0;
    for (const auto& result : client_.Step(batch)) ANNULUS_RETURN_IF_ERROR(result.status());
    return absl::OkStatus();
  }

 private:
  const StepShape shape_;
  Client& client_;
  Rng rng_{1};
  const Tensor q_ = RandomRows(1, shape_.heads, shape_.head_dim, rng_);
  const Tensor kv_ = RandomRows(1, shape_.kv_heads, shape_.head_dim, rng_);
  std::vector<ContextId> contexts_;
  int64_t next_ = 0;
};

}  // namespace

absl::StatusOr<StepTimes> TimeSteps(const StepShape& shape, const std::string& backend,
                                    int rounds) {
  InProcessOptions options;
  options.backend = backend;
  options.kv_bytes_limit = int64_t{4} << 30;
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Client::InProcess(options));
  Steps steps(shape, *client);
  ANNULUS_RETURN_IF_ERROR(steps.Fill());
  std::vector<double> times_us;
  for (int i = -kWarmUps; i < rounds; ++i) {
    const absl::Time begin = absl::Now();
    ANNULUS_RETURN_IF_ERROR(steps.Run());
    if (i >= 0) times_us.push_back(absl::ToDoubleMicroseconds(absl::Now() - begin));
  }
  std::sort(times_us.begin(), times_us.end());
  return StepTimes{times_us[times_us.size() / 2], times_us[times_us.size() * 99 / 100]};
}

}  // namespace annulus
