// The tensor work of an Append: checks k and v, cuts their rows by owner. Not thread-safe.
#pragma once

#include <vector>

#include "runtime/coordinator/call_work.h"

namespace annulus {

class AppendWork final : public CallWork {
 public:
  // The request must outlive this.
  explicit AppendWork(const AppendRequest& request) : request_(request) {}

  absl::StatusOr<std::vector<RankMessages>> Prepare(CallId id, const ShardMap& map) override;
  absl::Status OnAnswer(RankAnswer) override { return absl::OkStatus(); }

 private:
  const AppendRequest& request_;
};

}  // namespace annulus
