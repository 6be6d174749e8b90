#include "runtime/cli/demo/phases.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/cli/demo/probe.h"
#include "runtime/cli/relative_difference.h"

namespace annulus {
namespace {

constexpr int64_t kChunkTokens = 4096;
constexpr int64_t kPieceTokens = 16384;  // of an upload: what the demo holds at once
constexpr PlanKind kChunkPlans[] = {PlanKind::kPassQ, PlanKind::kGroupCast};
constexpr int64_t kChunkRowsSampled = 8;
constexpr int kStepsPerSample = 8;  // one of so many decode steps is compared
constexpr int kStepsPerProbe = 4;   // decode steps between two measurements of the machine
constexpr int64_t kProbeBytesMin = int64_t{16} << 20;
constexpr int64_t kProbeBytesMax = int64_t{512} << 20;
constexpr int64_t kTokenBytes = kDemoKvHeads * 2 * kDemoDim * 2;  // K and V, bf16

// The KV that one request reads if it reads what the pattern shows, once per KV head.
double VisibleKvBytes(const AttendStats& stats) {
  return static_cast<double>(stats.visited_pairs) / kDemoGroup * (2 * kDemoDim * 2);
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

void AddStats(const AttendStats& stats, DemoPhase* phase) {
  phase->plan = stats.plan;
  phase->bytes_moved += stats.bytes_moved;
  phase->planned_bytes += stats.planned_bytes;
  phase->work_pairs.resize(std::max(phase->work_pairs.size(), stats.workers.size()));
  for (size_t i = 0; i < stats.workers.size(); ++i) {
    phase->work_pairs[i] += stats.workers[i].work_pairs;
  }
}

}  // namespace

int64_t DemoKvBytes(int64_t tokens) {
  return tokens * kTokenBytes;
}

ContextSpec DemoContext(int64_t tokens, int workers) {
  constexpr int64_t kUnitMin = 4;  // the stride of the demo's S2
  constexpr int64_t kUnitMax = 64;
  ContextSpec spec;
  spec.heads = kDemoHeads;
  spec.kv_heads = kDemoKvHeads;
  spec.head_dim = kDemoDim;
  spec.v_head_dim = kDemoDim;
  spec.dtype = DType::kBF16;
  spec.placement = Placement::kTokens;
  int64_t unit = kUnitMax;
  while (unit > kUnitMin && unit * workers > BlocksOf(tokens)) unit /= 2;
  spec.partition = {PartitionKind::kBlockCyclic, unit};
  return spec;
}

TokenRange DemoChunk(int64_t tokens) {
  return {std::max<int64_t>(0, tokens - kChunkTokens), tokens};
}

DemoPhases::DemoPhases(Client* client, ContextId context, const DemoData* data, Backend* backend,
                       DemoReport* report)
    : client_(client),
      context_(context),
      data_(data),
      backend_(backend),
      report_(report),
      rng_(report->seed) {}

absl::Status DemoPhases::Upload(const std::function<void(int64_t, int64_t)>& progress) {
  const absl::Time begin = absl::Now();
  report_->kv_bytes = DemoKvBytes(data_->tokens());
  for (int64_t start = 0; start < data_->tokens(); start += kPieceTokens) {
    const TokenRange piece{start, std::min(start + kPieceTokens, data_->tokens())};
    const Tensor k = data_->Keys(piece, {0, kDemoKvHeads});
    const Tensor v = data_->Values(piece, {0, kDemoKvHeads});
    CallOptions call;
    call.progress = [&](int64_t done, int64_t) {
      progress(DemoKvBytes(start) + done, report_->kv_bytes);
    };
    ANNULUS_ASSIGN_OR_RETURN(
        const AppendResult appended,
        client_->Append({.context = context_, .layer = 0, .start = start, .k = k, .v = v}, call));
    if (appended.tokens != piece.end) {
      return absl::InternalError(
          absl::StrCat("tokens in the service: ", appended.tokens, "; expected ", piece.end));
    }
  }
  report_->upload_s = absl::ToDoubleSeconds(absl::Now() - begin);
  return absl::OkStatus();
}

absl::StatusOr<AttendResult> DemoPhases::Attend(const Tensor& q, const Pattern& pattern,
                                                std::optional<PlanKind> plan, bool trace,
                                                DemoPhase* phase) {
  AttendRequest request;
  request.context = context_;
  request.q_start = data_->tokens() - q.tokens();
  request.kv_len = data_->tokens();
  request.q = q;
  request.pattern = pattern.text();
  request.plan = plan;
  request.trace = trace;
  const absl::Time begin = absl::Now();
  ANNULUS_ASSIGN_OR_RETURN(AttendResult answer, client_->Attend(request));
  const absl::Time end = absl::Now();
  if (trace) {
    answer.trace.push_back({"client", "attend", absl::ToUnixNanos(begin), absl::ToUnixNanos(end)});
  }
  ++phase->requests;
  phase->queries += q.tokens();
  phase->elapsed_s += absl::ToDoubleSeconds(end - begin);
  AddStats(answer.stats, phase);
  return answer;
}

void DemoPhases::Sample(const Pattern& pattern, const Tensor& q, const AttendResult& answer,
                        int64_t row) {
  SampledRow sampled;
  sampled.phase = report_->phases.size();  // the one under way
  sampled.pattern = &pattern;
  sampled.position = data_->tokens() - q.tokens() + row;
  sampled.kv_tokens = data_->tokens();
  sampled.q = CopyToken(q, row);
  sampled.out = CopyToken(answer.out, row);
  sampled.lse = CopyToken(answer.lse, row);
  sample_.push_back(std::move(sampled));
}

absl::Status DemoPhases::RunChunk(const Pattern& pattern, std::vector<TraceSpan>* trace) {
  const TokenRange positions = DemoChunk(data_->tokens());
  const Tensor q = data_->Chunk(positions);
  std::vector<AttendResult> answers;
  for (const PlanKind plan : kChunkPlans) {
    DemoPhase phase;
    phase.name = "chunk";
    phase.pattern = pattern.text();
    ANNULUS_ASSIGN_OR_RETURN(AttendResult answer,
                             Attend(q, pattern, plan, /*trace=*/!answers.empty(), &phase));
    for (int i = 0; i < kDemoAssociations; ++i) {
      const int64_t row = DemoData::ChunkRow(i, positions.size());
      AddToRecall(*data_, pattern, i, positions.begin + row,
                  answer.out.f32() + row * kDemoHeads * kDemoDim, &phase.recall);
    }
    for (int64_t i = 0; i < kChunkRowsSampled; ++i) {
      Sample(pattern, q, answer, static_cast<int64_t>(rng_.Below(positions.size())));
    }
    report_->phases.push_back(std::move(phase));
    answers.push_back(std::move(answer));
  }
  report_->plans_difference = RelativeDifference(answers[0].out, answers[1].out);
  *trace = std::move(answers[1].trace);
  return absl::OkStatus();
}

absl::Status DemoPhases::RunDecode(const Pattern& pattern) {
  DemoPhase phase;
  phase.name = "decode";
  phase.pattern = pattern.text();
  // As large as the KV, so that a context which fits a cache is held against that cache.
  ANNULUS_ASSIGN_OR_RETURN(BandwidthProbe probe,
                           BandwidthProbe::Create(*backend_, static_cast<size_t>(std::clamp(
                                                                 DemoKvBytes(data_->tokens()),
                                                                 kProbeBytesMin, kProbeBytesMax))));
  std::vector<double> bytes_per_s, shares;
  double read_bytes_per_s = 0;
  const auto sampled_step = static_cast<int>(rng_.Below(kStepsPerSample));
  for (int i = 0; i < kDemoAssociations; ++i) {
    if (i % kStepsPerProbe == 0) {
      ANNULUS_ASSIGN_OR_RETURN(read_bytes_per_s, probe.Measure());
      read_bytes_per_s *= std::max(report_->gpus, 1);  // each works on its own part
      reads_.push_back(read_bytes_per_s);
    }
    const Tensor q = data_->Query(i);
    ANNULUS_ASSIGN_OR_RETURN(const AttendResult answer,
                             Attend(q, pattern, std::nullopt, /*trace=*/false, &phase));
    AddToRecall(*data_, pattern, i, data_->tokens() - 1, answer.out.f32(), &phase.recall);
    bytes_per_s.push_back(VisibleKvBytes(answer.stats) / answer.stats.elapsed_s);
    shares.push_back(bytes_per_s.back() / read_bytes_per_s);
    if (i % kStepsPerSample == sampled_step) Sample(pattern, q, answer, 0);
  }
  phase.kv_bytes_per_s = Median(std::move(bytes_per_s));
  phase.read_share = Median(std::move(shares));
  report_->read_bytes_per_s = Median(reads_);
  report_->phases.push_back(std::move(phase));
  return absl::OkStatus();
}

absl::Status DemoPhases::CompareSample() {
  const float scale = 1.0f / std::sqrt(float{kDemoDim});
  ANNULUS_RETURN_IF_ERROR(CompareWithOracle(*data_, scale, absl::MakeSpan(sample_)));
  for (const SampledRow& row : sample_) {
    DemoPhase& phase = report_->phases[row.phase];
    ++phase.rows_checked;
    phase.out_error = std::max(phase.out_error, row.out_error);
    phase.lse_error = std::max(phase.lse_error, row.lse_error);
  }
  sample_.clear();
  return absl::OkStatus();
}

}  // namespace annulus
