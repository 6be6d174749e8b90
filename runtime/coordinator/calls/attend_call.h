// AttendCall: an Attend is a batch of one item that also tells what it cost: figures of the plan,
// of the workers and of the transports, spans for a trace, a line in the log. Not thread-safe.
#pragma once

#include <string>

#include "runtime/coordinator/calls/batch_call.h"

namespace annulus {

class AttendCall final : public BatchCall {
 public:
  // As BatchCall.
  AttendCall(const AttendRequest& request, const CallContext& call, CallPlanner& planner,
             const Clock& clock, Stop stop = {});

  absl::StatusOr<PreparedCall> Prepare(const action::Admit& admit) override;
  absl::Status OnAnswer(ShareAnswer answer) override;

  // When the work for the request began, here or in a call before.
  absl::Time begin() const { return begin_; }
  void BeginAt(absl::Time begin) { begin_ = begin; }

  // After the call has ended: the finalised answer, or why there is none. Logs the call.
  absl::StatusOr<AttendResult> TakeResult(const absl::StatusOr<action::Finish>& finish) &&;

 private:
  void OnPhase(absl::string_view name, absl::Time begin) override;
  // Of the worker whose share this is.
  WorkerShare& ShareOf(int rank) { return result_.stats.workers.at(static_cast<size_t>(rank)); }

  const AttendRequest& request_;
  const std::string request_id_;  // the caller's, or made up
  const std::string trace_id_;    // empty: the caller is in no trace
  absl::Time begin_;
  AttendResult result_;
};

}  // namespace annulus
