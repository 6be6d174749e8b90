#include "bench/service/compress.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <memory>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "annulus/client.h"
#include "base/status.h"
#include "base/write_file.h"
#include "bench/report/columns.h"
#include "bench/service/drifting.h"

namespace annulus {
namespace {

// Of the prompt's end, which its last queries and those of the steps are near.
constexpr int64_t kAskedTokens = 256;

double MedianOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Decode {
 public:
  explicit Decode(const CompressShape& shape)
      : shape_(shape),
        rng_(static_cast<uint64_t>(shape.tokens)),
        keys_(DriftingKeys(rng_, shape.tokens, shape.kv_heads, shape.dim)) {}

  // The whole context.
  absl::StatusOr<ContextId> Fill() {
    ANNULUS_ASSIGN_OR_RETURN(client_, Client::InProcess({.backend = "cpu"}));
    ANNULUS_ASSIGN_OR_RETURN(const ContextId id, Create());
    const AppendRequest append{.context = id, .k = keys_, .v = keys_};
    ANNULUS_RETURN_IF_ERROR(client_->Append(append).status());
    return id;
  }

  absl::StatusOr<ContextId> Compress(ContextId whole, const Compression& way, double* seconds) {
    CompressRequest request;
    ANNULUS_ASSIGN_OR_RETURN(request.into, Create());
    Tensor q(DType::kBF16, way.queries, shape_.heads, shape_.dim);
    for (int64_t i = 0; i < way.queries; ++i) {
      const Tensor one = Query();
      std::memcpy(q.data() + static_cast<size_t>(i) * one.size_bytes(), one.data(),
                  one.size_bytes());
    }
    request.context = whole;
    request.q_start = shape_.tokens - way.queries;
    request.kv_len = shape_.tokens;
    request.q = q;
    request.rule = way.rule;
    const absl::Time begin = absl::Now();
    ANNULUS_RETURN_IF_ERROR(client_->Compress(request).status());
    *seconds = absl::ToDoubleSeconds(absl::Now() - begin);
    return request.into;
  }

  Tensor Query() { return QueryNear(rng_, keys_, shape_.heads, shape_.tokens - kAskedTokens); }

  // One token behind `start`.
  absl::StatusOr<StepResult> Step(ContextId id, int64_t start, const Tensor& q, double* seconds) {
    const TensorView token = keys_.view().Tokens(start % shape_.tokens, 1);
    StepRequest step;
    step.context = id;
    step.start = start;
    step.k = step.v = token;
    step.q = q;
    const absl::Time begin = absl::Now();
    StepResults results = client_->Step({&step, 1});
    *seconds = absl::ToDoubleSeconds(absl::Now() - begin);
    return std::move(results[0]);
  }

  absl::StatusOr<ContextInfo> Describe(ContextId id) { return client_->Describe(id); }

 private:
  absl::StatusOr<ContextId> Create() {
    ContextSpec spec;
    spec.heads = shape_.heads;
    spec.kv_heads = shape_.kv_heads;
    spec.head_dim = spec.v_head_dim = shape_.dim;
    ANNULUS_ASSIGN_OR_RETURN(const ContextInfo info, client_->CreateContext(spec));
    return info.id;
  }

  const CompressShape shape_;
  Rng rng_;
  const Tensor keys_;
  std::unique_ptr<Client> client_;
};

}  // namespace

absl::StatusOr<std::vector<CompressRow>> MeasureCompress(const CompressShape& shape,
                                                         const std::vector<Compression>& ways) {
  Decode decode(shape);
  std::vector<CompressRow> rows(1 + ways.size());
  std::vector<ContextId> ids(rows.size());
  ANNULUS_ASSIGN_OR_RETURN(ids[0], decode.Fill());
  rows[0].name = "whole";
  for (size_t i = 1; i < rows.size(); ++i) {
    rows[i].name = ways[i - 1].name;
    ANNULUS_ASSIGN_OR_RETURN(ids[i], decode.Compress(ids[0], ways[i - 1], &rows[i].compress_s));
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    ANNULUS_ASSIGN_OR_RETURN(const ContextInfo info, decode.Describe(ids[i]));
    rows[i].kept = info.tokens[0];
    rows[i].kv_bytes = info.kv_bytes;
    rows[i].whole_bytes = rows[0].kv_bytes;
  }
  std::vector<std::vector<double>> seconds(rows.size());
  for (int step = -1; step < shape.steps; ++step) {  // the first one warms
    const Tensor q = decode.Query();
    Tensor whole;
    for (size_t i = 0; i < rows.size(); ++i) {
      double took = 0;
      ANNULUS_ASSIGN_OR_RETURN(StepResult result,
                               decode.Step(ids[i], rows[i].kept + 1 + step, q, &took));
      if (i == 0) whole = std::move(result.lse);
      const float* lse = i == 0 ? whole.f32() : result.lse.f32();
      double mass = 0;
      for (int head = 0; head < shape.heads; ++head) {
        mass += std::exp(double{lse[head]} - double{whole.f32()[head]});
      }
      if (step < 0) continue;
      seconds[i].push_back(took);
      rows[i].mass += mass / shape.heads / shape.steps;
    }
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].step_s = MedianOf(seconds[i]);
    rows[i].whole_s = MedianOf(seconds[0]);
  }
  return rows;
}

absl::Status ShowCompress(int64_t tokens, bool json, const std::string& csv) {
  CompressShape shape;
  shape.tokens = tokens;
  // SnapKV as it holds 8.2 times less of 16K tokens; H2O at a fifth, half of it recent.
  const int64_t snapkv = tokens * 1950 / (16 << 10), h2o = tokens / 5;
  ANNULUS_ASSIGN_OR_RETURN(
      const std::vector<CompressRow> rows,
      MeasureCompress(shape,
                      {{"SnapKV", {.keep = snapkv, .recent = 32, .pool_width = 7}, 32},
                       {"H2O", {.keep = h2o, .recent = h2o / 2}, std::min<int64_t>(512, tokens)}}));
  std::string lines;
  for (const CompressRow& row : rows) {
    const double speedup = row.whole_s / row.step_s;
    const double bytes = static_cast<double>(row.whole_bytes) / static_cast<double>(row.kv_bytes);
    const Columns columns = {{"context", row.name},
                             {"tokens", shape.tokens},
                             {"kept", row.kept},
                             {"step_ms", row.step_s * 1e3},
                             {"steps_ratio", speedup},
                             {"kv_bytes", row.kv_bytes},
                             {"bytes_ratio", bytes},
                             {"mass", row.mass},
                             {"compress_ms", row.compress_s * 1e3}};
    lines += (lines.empty() ? columns.CsvHeader() : "") + columns.CsvLine();
    if (json) {
      std::cout << columns.JsonLine() << std::flush;
    } else {
      std::cout << absl::StrFormat(
                       "%-8s %7d tokens %8.3f ms a step, %5.2f steps to one, 1/%.2f of the bytes, "
                       "mass %.4f, made in %.0f ms\n",
                       row.name, row.kept, row.step_s * 1e3, speedup, bytes, row.mass,
                       row.compress_s * 1e3)
                << std::flush;
    }
  }
  return csv.empty() ? absl::OkStatus() : WriteFile(csv, {lines});
}

}  // namespace annulus
