// The tensor work of an Append: checks k and v, cuts their rows by owner. Not thread-safe.
#pragma once

#include "runtime/coordinator/call_work.h"

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

}  // namespace annulus
