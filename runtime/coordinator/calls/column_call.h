// ColumnCall: one trip of a column pass to the workers that hold a layer's keys
// (engine/column_pass.h). Compress makes three of them, and an append to the context that the rows
// go to. Not thread-safe.
#pragma once

#include <optional>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "runtime/coordinator/calls/call_planner.h"
#include "runtime/coordinator/calls/select_first.h"
#include "runtime/coordinator/calls/tensor_call.h"
#include "runtime/engine/column_pass.h"

namespace annulus {

// What the trips of a pass over one layer share: made by the first of them.
struct ColumnWork {
  std::optional<ColumnPass> pass;
  std::optional<ColumnPass::Merge> merge;
};

class ColumnCall final : public TensorCall {
 public:
  // All must outlive this.
  ColumnCall(const CompressRequest& request, ColumnTrip trip, const CallContext& call,
             const Clock& clock, ColumnWork* work)
      : request_(request), trip_(trip), call_(call), clock_(clock), work_(*work) {}

  // What the core is asked for.
  request::Work request() const;

  absl::StatusOr<PreparedCall> Prepare(const action::Admit& admit) override;
  absl::Status OnAnswer(ShareAnswer answer) override;

 private:
  absl::Status Begin(const ShardMap& map);
  Message Pack(const action::Admit& admit, int rank) const;

  const CompressRequest& request_;
  const ColumnTrip trip_;
  const CallContext& call_;
  const Clock& clock_;
  ColumnWork& work_;
};

// Carries a call's trip out, to its end.
using RunTrip = absl::FunctionRef<absl::StatusOr<action::Finish>(ColumnCall& call)>;
// The map of a context that has the request's layer.
using LookAt = absl::FunctionRef<absl::StatusOr<ShardMapPtr>(ContextId id)>;

// On the caller's thread.
absl::StatusOr<CompressResult> Compress(const CompressRequest& request, const CallContext& call,
                                        CallPlanner& planner, const Clock& clock, LookAt look,
                                        RunTrip run_trip, RunCall run);

}  // namespace annulus
