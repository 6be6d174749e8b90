#include "runtime/client/check_request.h"

#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/finish.h"
#include "attention/key_list.h"
#include "attention/pattern.h"
#include "base/status.h"
#include "runtime/context/layout.h"
#include "runtime/coordinator/calls/step_parts.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/protocol/public/index_queries.h"
#include "runtime/protocol/public/step_batch.h"
#include "runtime/protocol/public/tensor_stream.h"

namespace annulus {
namespace {

absl::Status CheckAtMost(absl::string_view field, int64_t value, int64_t most) {
  if (value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, "; expected 1 to ", most));
}

absl::Status CheckView(const TensorView& view, absl::string_view field, int64_t heads_max) {
  ANNULUS_RETURN_IF_ERROR(Streamable(view, field).status());
  ANNULUS_RETURN_IF_ERROR(
      CheckAtMost(absl::StrCat(field, ".tokens"), view.tokens, kContextTokensMax));
  ANNULUS_RETURN_IF_ERROR(CheckAtMost(absl::StrCat(field, ".heads"), view.heads, heads_max));
  return CheckAtMost(absl::StrCat(field, ".dim"), view.dim, kHeadDimMax);
}

absl::Status CheckText(absl::string_view field, absl::string_view text, size_t bytes_max) {
  if (text.size() > bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", text.size(), " bytes; expected at most ", bytes_max));
  }
  return CheckAscii(field, text);
}

absl::Status CheckScale(float scale) {
  if (std::isfinite(scale)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("scale: ", scale, "; expected a finite number"));
}

absl::Status CheckLists(const std::vector<CallList>& lists) {
  if (lists.size() > kListsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("lists: ", lists.size(), "; expected at most ", kListsMax));
  }
  for (size_t i = 0; i < lists.size(); ++i) {
    const std::string field = absl::StrCat("lists[", i, "]");
    ANNULUS_RETURN_IF_ERROR(CheckText(field + ".name", lists[i].name, kListNameBytesMax));
    if (lists[i].data == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(field, ".data: null; expected a list"));
    }
    if (const absl::Status form = CheckForm(*lists[i].data); !form.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(field, ".", form.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckIndex(const IndexQueries& index, int64_t q_tokens) {
  if (index.q.tokens == 0 && index.weights.empty()) return absl::OkStatus();
  ANNULUS_RETURN_IF_ERROR(CheckView(index.q, "index.q", kHeadsMax));
  ANNULUS_RETURN_IF_ERROR(CheckWeightCount("index.weights", index.weights.size()));
  if (index.q.tokens == q_tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("index.q.tokens: ", index.q.tokens, "; expected q.tokens, ", q_tokens));
}

absl::Status CheckKv(const TensorView& k, const TensorView& v) {
  ANNULUS_RETURN_IF_ERROR(CheckView(k, "k", kKvHeadsMax));
  if (v.tokens == 0) return absl::OkStatus();
  ANNULUS_RETURN_IF_ERROR(CheckView(v, "v", kKvHeadsMax));
  if (v.tokens == k.tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("v.tokens: ", v.tokens, "; expected k.tokens, ", k.tokens, ", or 0"));
}

absl::Status CheckStep(const StepRequest& request) {
  ANNULUS_RETURN_IF_ERROR(CheckPosition("start", request.start));
  if (request.k.tokens != 0 || request.v.tokens != 0) {
    ANNULUS_RETURN_IF_ERROR(CheckKv(request.k, request.v));
  }
  if (request.q.tokens != 0) {
    ANNULUS_RETURN_IF_ERROR(CheckView(request.q, "q", kHeadsMax));
  }
  ANNULUS_RETURN_IF_ERROR(CheckText("pattern", request.pattern, kPatternBytesMax));
  ANNULUS_RETURN_IF_ERROR(CheckScale(request.scale));
  ANNULUS_RETURN_IF_ERROR(CheckLists(request.lists));
  ANNULUS_RETURN_IF_ERROR(CheckSinks(request.sinks, request.q.heads));
  ANNULUS_RETURN_IF_ERROR(CheckIndex(request.index, request.q.tokens));
  const int64_t bytes = StepBytes(request);
  if (bytes <= kStepBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "bytes: ", bytes, " of k, v, q, index, lists and pattern together; expected at most ",
      kStepBytesMax, ": use Append and Attend for so many tokens"));
}

}  // namespace

absl::Status CheckRequest(const ContextSpec& spec) {
  ANNULUS_RETURN_IF_ERROR(CheckSpecFields(spec));
  for (size_t layer = 0; layer < spec.patterns.size(); ++layer) {
    ANNULUS_RETURN_IF_ERROR(
        CheckAscii(absl::StrCat("patterns[", layer, "]"), spec.patterns[layer]));
  }
  return absl::OkStatus();
}

absl::Status CheckRequest(const AppendRequest& request) {
  ANNULUS_RETURN_IF_ERROR(CheckFields(request, {}));
  return CheckKv(request.k, request.v);
}

absl::Status CheckRequest(const AttendRequest& request) {
  ANNULUS_RETURN_IF_ERROR(CheckFields(request, {}));
  ANNULUS_RETURN_IF_ERROR(CheckView(request.q, "q", kHeadsMax));
  ANNULUS_RETURN_IF_ERROR(CheckScale(request.scale));
  ANNULUS_RETURN_IF_ERROR(CheckText("pattern", request.pattern, kPatternBytesMax));
  ANNULUS_RETURN_IF_ERROR(CheckLists(request.lists));
  ANNULUS_RETURN_IF_ERROR(CheckSinks(request.sinks, request.q.heads));
  ANNULUS_RETURN_IF_ERROR(CheckIndex(request.index, request.q.tokens));
  return CheckText("request_id", request.request_id, kRequestIdBytesMax);
}

absl::Status CheckRequest(const SelectRequest& request) {
  ANNULUS_RETURN_IF_ERROR(CheckWeightCount("weights", request.weights.size()));
  return CheckRequest(AttendOf(request));
}

absl::Status CheckRequest(const CompressRequest& request) {
  ANNULUS_RETURN_IF_ERROR(CheckFields(request, {}));
  return CheckRequest(AttendOf(request));
}

std::vector<absl::Status> CheckSteps(absl::Span<const StepRequest> requests) {
  const absl::Status count = CheckStepCount(requests.size());
  std::vector<absl::Status> statuses(requests.size(), count);
  if (!count.ok()) return statuses;
  for (size_t i = 0; i < requests.size(); ++i) {
    const absl::Status status = CheckStep(requests[i]);
    if (status.ok()) continue;
    statuses[i] = absl::Status(status.code(), absl::StrCat("requests[", i, "].", status.message()));
  }
  for (const auto& [index, why] : RepeatedSteps(requests)) statuses[index].Update(why);
  return statuses;
}

}  // namespace annulus
