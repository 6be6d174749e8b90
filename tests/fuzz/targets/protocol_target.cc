#include <string>
#include <vector>

#include "base/check.h"
#include "runtime/context/layout.h"
#include "runtime/protocol/public/annulus.pb.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/protocol/public/step_batch.h"
#include "tests/fuzz/targets/parse.h"
#include "tests/fuzz/targets/targets.h"

namespace annulus::fuzz {
namespace {

// A message as a value, and back. What only a server sends is refused as its mistake.
template <typename Value, typename Message>
bool TryValue(Bytes input) {
  Message message;
  if (!Parse(input, &message)) return false;
  const auto value = FromProto<Value>(message);
  if (!value.ok()) {
    ANNULUS_CHECK(absl::IsInvalidArgument(value.status()));
    return false;
  }
  Message first, second;
  ANNULUS_CHECK(ToProto(*value, &first).ok());
  const auto again = FromProto<Value>(first);
  ANNULUS_CHECK(again.ok() && ToProto(*again, &second).ok());
  ANNULUS_CHECK(first.SerializeAsString() == second.SerializeAsString());
  return true;
}

bool TrySpec(Bytes input) {
  v1::ContextSpec message;
  if (!Parse(input, &message)) return false;
  const absl::StatusOr<ContextSpec> spec = FromProto<ContextSpec>(message);
  return spec.ok() && ValidateSpec(*spec).ok() && TryValue<ContextSpec, v1::ContextSpec>(input);
}

bool TrySteps(Bytes input) {
  v1::StepBatch message;
  if (!Parse(input, &message)) return false;
  std::vector<StepRequest> steps;
  for (absl::StatusOr<StepRequest>& step : FromProto(message)) {
    ANNULUS_CHECK(step.ok() || absl::IsInvalidArgument(step.status()));
    if (!step.ok()) continue;
    (void)(Sum(step->k) + Sum(step->v) + Sum(step->q));
    steps.push_back(*std::move(step));
  }
  if (steps.empty()) return false;
  size_t cut = 0;
  for (const StepCut& part : CutSteps(steps)) {
    ANNULUS_CHECK(part.first == cut && part.count > 0);
    cut += part.count;
  }
  ANNULUS_CHECK(cut == steps.size());
  v1::StepBatch first;
  ToProto(steps, &first);
  for (const absl::StatusOr<StepRequest>& step : FromProto(first)) ANNULUS_CHECK(step.ok());
  return true;
}

constexpr bool (*kKinds[])(Bytes) = {
    TrySpec,
    TryValue<ContextInfo, v1::ContextInfo>,
    TryValue<ContextList, v1::ContextList>,
    TryValue<AppendGrant, v1::AppendGrant>,
    TryValue<ClusterStatus, v1::ClusterStatus>,
    TrySteps,
};

}  // namespace

bool TryProtocol(Bytes input) {
  const unsigned kind = TakeByte(&input);
  return kind < std::size(kKinds) && kKinds[kind](input);
}

}  // namespace annulus::fuzz
