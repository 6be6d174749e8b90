// ColumnCall: one trip of a column pass to the workers that hold a layer's keys
// (engine/column_pass.h). Compress makes three of them, and an append to the context that the rows
// go to; words that choose by columns and diagonals make two. Not thread-safe.
#pragma once

#include <optional>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "runtime/coordinator/calls/batch_call.h"
#include "runtime/coordinator/calls/call_planner.h"
#include "runtime/coordinator/calls/tensor_call.h"
#include "runtime/engine/column_pass.h"

namespace annulus {

// What the trips of a pass over one layer share: made by the first of them.
struct ColumnWork {
  std::optional<ColumnTrip> weights = {};   // of a word's choice: its second trip
  std::optional<int64_t> truncations = {};  // as request::WorkItem
  std::optional<ColumnPass> pass;
  std::optional<ColumnPass::Merge> merge;
};

// The queries of a pass.
struct ColumnQuestion {
  ContextId context = 0;
  int layer = 0;
  int64_t q_start = 0;
  int64_t kv_len = 0;
  TensorView q = {};
  float scale = 0;  // 0: 1/√head_dim

  float ScaleFor(const ContextSpec& spec) const;
};

class ColumnCall final : public TensorCall {
 public:
  // All must outlive this.
  ColumnCall(const ColumnQuestion& question, ColumnTrip trip, const CallContext& call,
             const Clock& clock, ColumnWork* work)
      : question_(question), trip_(trip), call_(call), clock_(clock), work_(*work) {}

  // What the core is asked for.
  request::Work request() const;

  absl::StatusOr<PreparedCall> Prepare(const action::Admit& admit) override;
  absl::Status OnAnswer(ShareAnswer answer) override;

 private:
  absl::Status Begin(const ShardMap& map);
  Message Pack(const action::Admit& admit, int rank) const;

  const ColumnQuestion& question_;
  const ColumnTrip trip_;
  const CallContext& call_;
  const Clock& clock_;
  ColumnWork& work_;
};

// Carries a call's trip out, to its end.
using RunTrip = absl::FunctionRef<absl::StatusOr<action::Finish>(ColumnCall& call)>;
// The map of a context that has the request's layer.
using LookAt = absl::FunctionRef<absl::StatusOr<ShardMapPtr>(ContextId id)>;

// One trip, to its end: then it has ended well.
absl::StatusOr<action::ItemEnd> RunColumnTrip(const ColumnQuestion& question, ColumnTrip trip,
                                              const CallContext& call, const Clock& clock,
                                              RunTrip run_trip, ColumnWork* work);

// On the caller's thread.
absl::StatusOr<CompressResult> Compress(const CompressRequest& request, const CallContext& call,
                                        CallPlanner& planner, const Clock& clock, LookAt look,
                                        RunTrip run_trip, RunCall run);

}  // namespace annulus
