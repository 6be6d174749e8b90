#include "runtime/cli/shared_options.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/quoted.h"
#include "base/status.h"

namespace annulus {
namespace {

absl::StatusOr<std::optional<PlanKind>> ParsePlan(absl::string_view text) {
  if (text == "auto") return std::nullopt;
  return ParsePlanKind(text);
}

}  // namespace

absl::StatusOr<std::string> ParseEndpoint(absl::string_view text) {
  constexpr int64_t kPortMax = 65535;
  const size_t colon = text.rfind(':');
  bool good = colon != absl::string_view::npos && colon > 0 &&
              ParseCount(text.substr(colon + 1), 0, kPortMax).ok();
  for (const char c : text.substr(0, colon)) good = good && c > ' ' && c < 0x7f && c != '/';
  if (good) return std::string(text);
  return absl::InvalidArgumentError(absl::StrCat(Quoted(text), ", expected HOST:PORT"));
}

void AddPlan(Options* options, std::optional<PlanKind>* plan) {
  std::string kinds = "auto";
  for (const PlanKind kind : kPlanKinds) absl::StrAppend(&kinds, "|", Name(kind));
  options->Add("plan", kinds, "how the work is cut (auto: the cheapest)",
               SetParsed(plan, ParsePlan));
}

void AddPlacement(Options* options, PartitionSpec* placement) {
  options->Add("placement", "zigzag|contiguous|block-cyclic:N|striped",
               "where tokens lie before the plan (zigzag)",
               SetParsed(placement, PartitionSpec::Parse));
}

}  // namespace annulus
