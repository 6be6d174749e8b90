// The work of a direct append: no tensors, but what each rank is to expect from the client, and
// what the client must know for that. Not thread-safe.
#pragma once

#include <string>

#include "base/clock.h"
#include "runtime/coordinator/call_work.h"
#include "runtime/coordinator/service.h"

namespace annulus {

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
