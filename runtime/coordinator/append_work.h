// The work of an Append: the cutting of k and v by owner, or what a direct append takes instead.
// Not thread-safe.
#pragma once

#include "base/clock.h"
#include "runtime/coordinator/call_work.h"
#include "runtime/service/service.h"

namespace annulus {

// INVALID_ARGUMENT names the tensor that does not fit the context.
absl::Status CheckKv(const ContextSpec& spec, const TensorView& k, const TensorView& v);

class AppendWork final : public CallWork {
 public:
  // The request must outlive this.
  explicit AppendWork(const AppendRequest& request) : request_(request) {}

  absl::StatusOr<PreparedWork> Prepare(const action::Admit& admit) override;
  absl::Status OnAnswer(RankAnswer) override { return absl::OkStatus(); }

 private:
  const AppendRequest& request_;
};

// A direct append has no tensors here, but what each rank is to expect from the client, and what
// the client must know for that.
class GrantWork final : public CallWork {
 public:
  // Both must outlive this. An upload must be whole at `deadline`.
  GrantWork(const DirectAppend& request, const GrantSink& granted, absl::Time deadline,
            const Clock& clock)
      : request_(request), granted_(granted), deadline_(deadline), clock_(clock) {}

  absl::StatusOr<PreparedWork> Prepare(const action::Admit& admit) override;
  absl::Status OnAnswer(RankAnswer) override { return absl::OkStatus(); }

 private:
  const DirectAppend& request_;
  const GrantSink& granted_;
  const absl::Time deadline_;
  const Clock& clock_;
};

}  // namespace annulus
