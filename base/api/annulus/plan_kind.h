// PlanKind: the ways to cut an attention problem over ranks and to move what they need. Plain
// values.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace annulus {

enum class PlanKind { kRing, kRingContiguous, kHeads, kMesh, kGroupCast, kPassQ };
inline constexpr PlanKind kPlanKinds[] = {PlanKind::kRing,      PlanKind::kRingContiguous,
                                          PlanKind::kHeads,     PlanKind::kMesh,
                                          PlanKind::kGroupCast, PlanKind::kPassQ};

// "ring", "ring-contiguous", "heads", "mesh", "group-cast", "pass-q"; "unknown" for what is none of
// them, which ParsePlanKind refuses.
absl::string_view Name(PlanKind kind);
absl::StatusOr<PlanKind> ParsePlanKind(absl::string_view text);

}  // namespace annulus
