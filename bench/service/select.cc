#include "bench/service/select.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "annulus/client.h"
#include "attention/cpu/machine_peaks.h"
#include "base/status.h"
#include "base/write_file.h"
#include "bench/report/columns.h"
#include "bench/service/drifting.h"

namespace annulus {
namespace {

constexpr int64_t kPieceTokens = 16 << 10;
constexpr size_t kReadBytes = size_t{512} << 20;  // many times a cache

double MedianOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// [tokens, 1, dim]: the mean of the heads.
Tensor Means(const Tensor& keys) {
  Tensor means(DType::kBF16, keys.tokens(), 1, keys.dim());
  const auto* from = reinterpret_cast<const uint16_t*>(keys.data());
  for (int64_t t = 0; t < keys.tokens(); ++t) {
    for (int64_t c = 0; c < keys.dim(); ++c) {
      float sum = 0;
      for (int64_t h = 0; h < keys.heads(); ++h) {
        sum += BF16ToF32(from[(t * keys.heads() + h) * keys.dim() + c]);
      }
      PutBf16(&means, t * keys.dim() + c, sum / static_cast<float>(keys.heads()));
    }
  }
  return means;
}

int IndexHeads(const std::string& pattern, const SelectShape& shape) {
  return absl::StartsWith(pattern, "dsa") ? 64 : shape.kv_heads;
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
    spec.tracks = {{"index", shape_.dim, DType::kBF16}};
    ANNULUS_ASSIGN_OR_RETURN(const ContextInfo info, client_->CreateContext(spec));
    id_ = info.id;
    for (int64_t at = 0; at < shape_.tokens; at += kPieceTokens) {
      const int64_t tokens = std::min(kPieceTokens, shape_.tokens - at);
      Tensor keys = DriftingKeys(rng_, tokens, shape_.kv_heads, shape_.dim);
      AppendRequest append{.context = id_, .start = at, .k = keys, .v = keys};
      ANNULUS_RETURN_IF_ERROR(client_->Append(append).status());
      const Tensor index = Means(keys);
      append = {.context = id_, .layer = TrackLayer(spec, 0, 0), .start = at, .k = index};
      ANNULUS_RETURN_IF_ERROR(client_->Append(append).status());
      last_ = std::move(keys);
    }
    return absl::OkStatus();
  }

  // Near one of the last keys, a different one for each head.
  Tensor Query() { return QueryNear(rng_, last_, shape_.heads); }

  struct Times {
    double step_s = 0;
    double select_s = 0;
  };
  absl::StatusOr<StepResult> Step(const std::string& pattern, const Tensor& q, Times* times) {
    StepRequest step{.context = id_, .start = shape_.tokens, .q = q, .pattern = pattern};
    const absl::Time begin = absl::Now();
    const bool dsa = absl::StartsWith(pattern, "dsa");
    if (dsa || absl::StartsWith(pattern, "msa")) {
      ANNULUS_ASSIGN_OR_RETURN(step.lists, SelectByIndex(pattern, q, dsa));
      times->select_s = absl::ToDoubleSeconds(absl::Now() - begin);
    }
    StepResults results = client_->Step({&step, 1});
    times->step_s = absl::ToDoubleSeconds(absl::Now() - begin);
    return std::move(results[0]);
  }

  absl::StatusOr<int64_t> KvBytes() {
    ANNULUS_ASSIGN_OR_RETURN(const ContextInfo info, client_->Describe(id_));
    return info.kv_bytes;
  }

 private:
  absl::StatusOr<std::vector<CallList>> SelectByIndex(const std::string& pattern, const Tensor& q,
                                                      bool dsa) {
    const int heads = IndexHeads(pattern, shape_);
    Tensor queries(DType::kBF16, 1, heads, shape_.dim);
    for (int head = 0; head < heads; ++head) {
      const int from = dsa ? head % shape_.heads : head * (shape_.heads / shape_.kv_heads);
      std::copy_n(q.view().Row(0, from), static_cast<size_t>(shape_.dim) * SizeOf(DType::kBF16),
                  queries.data() + head * shape_.dim * SizeOf(DType::kBF16));
    }
    SelectRequest select{.context = id_,
                         .layer = 1,  // the track's, of the only layer
                         .q_start = shape_.tokens - 1,
                         .kv_len = shape_.tokens,
                         .q = queries,
                         .pattern = pattern};
    if (dsa) select.weights.assign(static_cast<size_t>(heads), 1.0f);
    ANNULUS_ASSIGN_OR_RETURN(SelectResult chosen, client_->Select(select));
    return std::move(chosen.lists);
  }

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
  std::vector<std::vector<double>> seconds(all.size()), selecting(all.size());
  for (int step = -1; step < shape.steps; ++step) {  // the first one warms
    const Tensor q = decode.Query();
    Tensor dense;
    for (size_t i = 0; i < all.size(); ++i) {
      Decode::Times took;
      ANNULUS_ASSIGN_OR_RETURN(StepResult result, decode.Step(all[i], q, &took));
      if (i == 0) dense = std::move(result.lse);
      const float* lse = i == 0 ? dense.f32() : result.lse.f32();
      double mass = 0;
      for (int head = 0; head < shape.heads; ++head)
        mass += std::exp(lse[head] - dense.f32()[head]);
      if (step < 0) continue;
      seconds[i].push_back(took.step_s);
      selecting[i].push_back(took.select_s);
      rows[i].mass += mass / shape.heads / shape.steps;
    }
  }
  ANNULUS_ASSIGN_OR_RETURN(const int64_t kv_bytes, decode.KvBytes());
  const double dot_peak = MeasureBf16DotPeak(0);
  const double peak = dot_peak > 0 ? dot_peak : MeasureFmaPeak(0);
  const double read = MeasureReadBandwidth(0, kReadBytes);
  for (size_t i = 0; i < all.size(); ++i) {
    rows[i].pattern = all[i];
    rows[i].step_s = MedianOf(seconds[i]);
    rows[i].select_s = MedianOf(selecting[i]);
    rows[i].dense_s = MedianOf(seconds[0]);
    rows[i].kv_bytes = kv_bytes;
    if (rows[i].select_s == 0) continue;
    const double values = static_cast<double>(shape.tokens * shape.dim);
    const double computing_s = 2 * values * IndexHeads(all[i], shape) / peak;
    const double reading_s = 2 * values / read;  // bytes of bf16
    rows[i].index_share = std::max(computing_s, reading_s) / rows[i].select_s;
  }
  return rows;
}

absl::Status ShowSelect(int64_t tokens, bool json, const std::string& csv) {
  SelectShape shape;
  shape.tokens = tokens;
  ANNULUS_ASSIGN_OR_RETURN(const std::vector<SelectRow> rows,
                           MeasureSelect(shape, {"quest(4096,16)", "quest(4096,64)", "moba(512,12)",
                                                 "dsa(2048)", "msa(128,16)"}));
  std::string lines;
  for (const SelectRow& row : rows) {
    const Columns columns = {
        {"pattern", row.pattern},
        {"tokens", shape.tokens},
        {"step_ms", row.step_s * 1e3},
        {"select_ms", row.select_s * 1e3},
        {"speedup", row.dense_s / row.step_s},
        {"index_share", row.select_s > 0 ? Columns::Value(row.index_share) : Columns::Value()},
        {"mass", row.mass},
        {"kv_bytes", row.kv_bytes}};
    lines += (lines.empty() ? columns.CsvHeader() : "") + columns.CsvLine();
    if (json) {
      std::cout << columns.JsonLine() << std::flush;
    } else {
      std::cout << absl::StrFormat("%-20s %9.2f ms, dense / it %6.2f, mass %.4f", row.pattern,
                                   row.step_s * 1e3, row.dense_s / row.step_s, row.mass);
      if (row.select_s > 0) {
        std::cout << absl::StrFormat(", %.2f of what its index allows", row.index_share);
      }
      std::cout << std::endl;
    }
  }
  return csv.empty() ? absl::OkStatus() : WriteFile(csv, {lines});
}

}  // namespace annulus
