// What calls cost beside each other: the units in which callers share the service (fair_queue.h),
// 10⁶ multiply-adds of attention. Of an Attend that was planned before, the pairs that its plan
// computes count, of others all pairs of their shapes. Pure functions of values; what a hostile
// header names makes no cost that is not finite and positive.
#pragma once

#include "absl/types/span.h"
#include "annulus/types.h"
#include "runtime/service/service.h"

namespace annulus {

double CostOf(const AttendRequest& request, const CallSize& size);
double CostOf(const SelectRequest& request, const CallSize& size);
double CostOf(const CompressRequest& request, const CallSize& size);
double CostOf(const AppendRequest& request, const CallSize& size);
double CostOf(absl::Span<const StepRequest> steps);

}  // namespace annulus
