#include "bench/service/select.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "annulus/client.h"
#include "base/rng.h"
#include "base/status.h"
#include "base/write_file.h"
#include "bench/report/columns.h"

namespace annulus {
namespace {

constexpr int64_t kPieceTokens = 16 << 10;
constexpr int64_t kDriftTokens = 64;  // tokens that lie near one another

double MedianOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void Put(Tensor* to, int64_t at, float x) {
  reinterpret_cast<uint16_t*>(to->data())[at] = F32ToBF16(x);
}

// Neighbours share half of what they are.
Tensor Keys(Rng& rng, int64_t tokens, int heads, int dim) {
  Tensor keys(DType::kBF16, tokens, heads, dim);
  const int64_t row = int64_t{heads} * dim;
  std::vector<float> drift(static_cast<size_t>(row)), noise(4096);
  for (float& x : noise) x = rng.Normal();
  for (int64_t t = 0; t < tokens; ++t) {
    if (t % kDriftTokens == 0) {
      for (float& x : drift) x = rng.Normal();
    }
    const uint64_t from = rng.Next();
    for (int64_t i = 0; i < row; ++i) {
      const float own = noise[(from + static_cast<uint64_t>(i) * 7) % noise.size()];
      Put(&keys, t * row + i, 0.7f * (drift[static_cast<size_t>(i)] + own));
    }
  }
  return keys;
}

class Decode {
 public:
  explicit Decode(const SelectShape& shape) : shape_(shape), rng_(shape.tokens) {}

  absl::Status Fill(const std::vector<std::string>& patterns) {
    const int64_t token_bytes = int64_t{4} * shape_.kv_heads * shape_.dim;
    ANNULUS_ASSIGN_OR_RETURN(
        client_,
        Client::InProcess({.backend = "cpu", .kv_bytes_limit = 2 * token_bytes * shape_.tokens}));
    ContextSpec spec;
    spec.heads = shape_.heads;
    spec.kv_heads = shape_.kv_heads;
    spec.head_dim = spec.v_head_dim = shape_.dim;
    // So that the summaries of all of them are kept.
    spec.patterns = {patterns.empty() ? "causal" : absl::StrJoin(patterns, " | ")};
    ANNULUS_ASSIGN_OR_RETURN(const ContextInfo info, client_->CreateContext(spec));
    id_ = info.id;
    for (int64_t at = 0; at < shape_.tokens; at += kPieceTokens) {
      const int64_t tokens = std::min(kPieceTokens, shape_.tokens - at);
      Tensor keys = Keys(rng_, tokens, shape_.kv_heads, shape_.dim);
      AppendRequest append{.context = id_, .start = at, .k = keys, .v = keys};
      ANNULUS_RETURN_IF_ERROR(client_->Append(append).status());
      last_ = std::move(keys);
    }
    return absl::OkStatus();
  }

  // Near one of the last keys, a different one for each head.
  Tensor Query() {
    Tensor q(DType::kBF16, 1, shape_.heads, shape_.dim);
    const int group = shape_.heads / shape_.kv_heads;
    for (int head = 0; head < shape_.heads; ++head) {
      const int64_t token = static_cast<int64_t>(rng_.Below(static_cast<uint64_t>(last_.tokens())));
      const std::byte* key = last_.view().Row(token, head / group);
      for (int c = 0; c < shape_.dim; ++c) {
        const float x = BF16ToF32(reinterpret_cast<const uint16_t*>(key)[c]);
        Put(&q, int64_t{head} * shape_.dim + c, 1.5f * x + rng_.Normal());
      }
    }
    return q;
  }

  absl::StatusOr<StepResult> Step(const std::string& pattern, const Tensor& q, double* seconds) {
    StepRequest step{.context = id_, .start = shape_.tokens, .q = q, .pattern = pattern};
    const absl::Time begin = absl::Now();
    StepResults results = client_->Step({&step, 1});
    *seconds = absl::ToDoubleSeconds(absl::Now() - begin);
    return std::move(results[0]);
  }

  absl::StatusOr<int64_t> KvBytes() {
    ANNULUS_ASSIGN_OR_RETURN(const ContextInfo info, client_->Describe(id_));
    return info.kv_bytes;
  }

 private:
  const SelectShape shape_;
  Rng rng_;
  std::unique_ptr<Client> client_;
  ContextId id_ = 0;
  Tensor last_;
};

}  // namespace

absl::StatusOr<std::vector<SelectRow>> MeasureSelect(const SelectShape& shape,
                                                     const std::vector<std::string>& patterns) {
  Decode decode(shape);
  ANNULUS_RETURN_IF_ERROR(decode.Fill(patterns));
  std::vector<std::string> all = {"causal"};
  all.insert(all.end(), patterns.begin(), patterns.end());
  std::vector<SelectRow> rows(all.size());
  std::vector<std::vector<double>> seconds(all.size());
  for (int step = -1; step < shape.steps; ++step) {  // the first one warms
    const Tensor q = decode.Query();
    Tensor dense;
    for (size_t i = 0; i < all.size(); ++i) {
      double took = 0;
      ANNULUS_ASSIGN_OR_RETURN(StepResult result, decode.Step(all[i], q, &took));
      if (i == 0) dense = std::move(result.lse);
      const float* lse = i == 0 ? dense.f32() : result.lse.f32();
      double mass = 0;
      for (int head = 0; head < shape.heads; ++head)
        mass += std::exp(lse[head] - dense.f32()[head]);
      if (step < 0) continue;
      seconds[i].push_back(took);
      rows[i].mass += mass / shape.heads / shape.steps;
    }
  }
  ANNULUS_ASSIGN_OR_RETURN(const int64_t kv_bytes, decode.KvBytes());
  for (size_t i = 0; i < all.size(); ++i) {
    rows[i].pattern = all[i];
    rows[i].step_s = MedianOf(seconds[i]);
    rows[i].dense_s = MedianOf(seconds[0]);
    rows[i].kv_bytes = kv_bytes;
  }
  return rows;
}

absl::Status ShowSelect(int64_t tokens, bool json, const std::string& csv) {
  SelectShape shape;
  shape.tokens = tokens;
  ANNULUS_ASSIGN_OR_RETURN(
      const std::vector<SelectRow> rows,
      MeasureSelect(shape, {"quest(4096,16)", "quest(4096,64)", "moba(512,12)"}));
  std::string lines;
  for (const SelectRow& row : rows) {
    const Columns columns = {{"pattern", row.pattern},
                             {"tokens", shape.tokens},
                             {"step_ms", row.step_s * 1e3},
                             {"speedup", row.dense_s / row.step_s},
                             {"mass", row.mass},
                             {"kv_bytes", row.kv_bytes}};
    lines += (lines.empty() ? columns.CsvHeader() : "") + columns.CsvLine();
    if (json) {
      std::cout << columns.JsonLine() << std::flush;
    } else {
      std::cout << absl::StrFormat("%-20s %9.2f ms, dense / it %6.2f, mass %.4f\n", row.pattern,
                                   row.step_s * 1e3, row.dense_s / row.step_s, row.mass)
                << std::flush;
    }
  }
  return csv.empty() ? absl::OkStatus() : WriteFile(csv, {lines});
}

}  // namespace annulus
