// The tensor work of a direct append: it has no tensors here, but what each rank is to expect from
// the client, and what the client must know for that. Not thread-safe.
#pragma once

#include "base/clock.h"
#include "runtime/coordinator/calls/tensor_call.h"
#include "runtime/service/service.h"

namespace annulus {

class DirectAppendCall final : public TensorCall {
 public:
  // All must outlive this. An upload must be whole at the call's deadline.
  DirectAppendCall(const DirectAppend& request, const CallContext& call, const Clock& clock)
      : request_(request), call_(call), clock_(clock) {}

  // What the core is asked for.
  request::Work request() const;

  absl::StatusOr<PreparedCall> Prepare(const action::Admit& admit) override;
  absl::Status OnAnswer(ShareAnswer) override { return absl::OkStatus(); }

 private:
  const DirectAppend& request_;
  const CallContext& call_;
  const Clock& clock_;
};

}  // namespace annulus
