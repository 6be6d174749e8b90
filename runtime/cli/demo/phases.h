// The demo's requests against a service: upload, the chunk over two plans, the decode steps, and
// the comparison of a sample of their rows with the oracle. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "annulus/client.h"
#include "attention/backend.h"
#include "attention/pattern.h"
#include "base/rng.h"
#include "runtime/cli/demo/checks.h"
#include "runtime/cli/demo/data.h"
#include "runtime/cli/demo/report.h"

namespace annulus {

// The demo's context: block-cyclic with a unit that is a multiple of the S2 stride, so that no
// worker gets all strided blocks of a head, and small enough for a short context to reach every
// worker.
ContextSpec DemoContext(int64_t tokens, int workers);

int64_t DemoKvBytes(int64_t tokens);

// The 4,096 last queries of the context, or all.
TokenRange DemoChunk(int64_t tokens);

class DemoPhases {
 public:
  // All must outlive this. Results are appended to the report. `context` is empty and as
  // DemoContext says; `backend` is one like the workers'.
  DemoPhases(Client* client, ContextId context, const DemoData* data, Backend* backend,
             DemoReport* report);

  // Sends the context piece by piece; `progress` is told of bytes done and bytes in all.
  absl::Status Upload(const std::function<void(int64_t, int64_t)>& progress);

  // The context's last queries as one chunk, over two plans. The spans of the second go to `trace`.
  absl::Status RunChunk(const Pattern& pattern, std::vector<TraceSpan>* trace);

  // One query per association, at the last position. Measures the bandwidth of the KV's memory in
  // between.
  absl::Status RunDecode(const Pattern& pattern);

  // Compares the sampled rows of all phases so far with the oracle.
  absl::Status CompareSample();

 private:
  absl::StatusOr<AttendResult> Attend(const Tensor& q, const Pattern& pattern,
                                      std::optional<PlanKind> plan, bool trace, DemoPhase* phase);
  void Sample(const Pattern& pattern, const Tensor& q, const AttendResult& answer, int64_t row);

  Client* const client_;
  const ContextId context_;
  const DemoData* const data_;
  Backend* const backend_;
  DemoReport* const report_;
  Rng rng_;
  std::vector<SampledRow> sample_;
  std::vector<double> reads_;  // bytes/s of this machine, as measured so far
};

}  // namespace annulus
