#include "attention/attend_args.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace annulus {
namespace {

template <typename Value, typename... Expected>
absl::Status Refuse(absl::string_view field, const Value& value, const Expected&... expected) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, "; expected ", expected...));
}

absl::Status CheckDim(absl::string_view field, int64_t dim, const BackendCapabilities& can) {
  if (dim >= 1 && dim <= can.head_dim_max && dim % can.head_dim_multiple == 0) {
    return absl::OkStatus();
  }
  return Refuse(field, dim, "a multiple of ", can.head_dim_multiple, " from ",
                can.head_dim_multiple, " to ", can.head_dim_max, " (backend ", can.name, ")");
}

absl::Status CheckQueries(const AttendArgs& args) {
  const KvTable& kv = *args.kv;
  const TensorView& q = args.q;
  if (q.dtype != DType::kF32 && q.dtype != kv.dtype()) {
    return Refuse("q dtype", Name(q.dtype), "f32 or that of the keys, ", Name(kv.dtype()));
  }
  if (q.dim != kv.head_dim()) return Refuse("q head_dim", q.dim, kv.head_dim(), ", as in the keys");
  if (q.heads != args.heads.count) {
    return Refuse("number of heads in q", q.heads, args.heads.count, ", as in heads");
  }
  int64_t rows = 0;
  int64_t last = 0;
  for (const TokenRange& range : args.q_ranges) {
    if (range.begin < last || range.end < range.begin) {
      return Refuse("query range", absl::StrCat("[", range.begin, ", ", range.end, ")"),
                    "ranges that ascend and do not overlap, the next from ", last, " on");
    }
    rows += range.size();
    last = range.end;
  }
  if (q.tokens != rows) {
    return Refuse("number of query rows", q.tokens, rows, ", the sum of the query ranges");
  }
  return absl::OkStatus();
}

absl::Status CheckHeads(const AttendArgs& args) {
  const KvTable& kv = *args.kv;
  if (args.group < 1) return Refuse("group", args.group, "at least 1");
  const int first = args.heads.first / args.group;
  const int end = (args.heads.end() + args.group - 1) / args.group;
  if (args.heads.first < 0 || args.heads.count < 1 || first < kv.kv_head_first() ||
      end > kv.kv_head_first() + kv.kv_heads() || end > args.pattern->kv_heads()) {
    return Refuse("heads", absl::StrCat("[", args.heads.first, ", ", args.heads.end(), ")"),
                  "query heads of the table's KV heads [", kv.kv_head_first(), ", ",
                  kv.kv_head_first() + kv.kv_heads(), ") with group ", args.group,
                  ", among the pattern's ", args.pattern->kv_heads(), " KV heads");
  }
  if (args.pattern->by_query_head() && args.group != args.pattern->members()) {
    return Refuse("group", args.group, args.pattern->members(), ", as in the pattern's lists");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckAttendArgs(const AttendArgs& args, const BackendCapabilities& capabilities) {
  ANNULUS_CHECK(args.kv != nullptr && args.pattern != nullptr && args.keys != nullptr);
  const auto& dtypes = capabilities.dtypes;
  if (std::find(dtypes.begin(), dtypes.end(), args.kv->dtype()) == dtypes.end()) {
    return Refuse("dtype", Name(args.kv->dtype()), "one that backend ", capabilities.name,
                  " computes");
  }
  const bool on_device =
      args.memory == MemoryKind::kDevice || args.kv->memory() == MemoryKind::kDevice;
  if (on_device && !capabilities.device_memory) {
    return Refuse("memory", "device", "host (backend ", capabilities.name, ")");
  }
  ANNULUS_RETURN_IF_ERROR(CheckDim("head_dim", args.kv->head_dim(), capabilities));
  ANNULUS_RETURN_IF_ERROR(CheckDim("v_head_dim", args.kv->v_head_dim(), capabilities));
  ANNULUS_RETURN_IF_ERROR(CheckHeads(args));
  ANNULUS_RETURN_IF_ERROR(CheckQueries(args));
  ANNULUS_RETURN_IF_ERROR(CheckScale(args.scale));
  const PartialView& into = args.into;
  if (into.rows != args.q.tokens || into.heads != args.heads.count ||
      into.v_head_dim != args.kv->v_head_dim()) {
    return Refuse("partial to merge into",
                  absl::StrCat("[", into.rows, ", ", into.heads, ", ", into.v_head_dim, "]"), "[",
                  args.q.tokens, ", ", args.heads.count, ", ", args.kv->v_head_dim(), "]");
  }
  return absl::OkStatus();
}

absl::Status CheckScale(float scale) {
  const auto refuse = [scale](absl::string_view expected) {
    return absl::InvalidArgumentError(absl::StrCat("scale: ", scale, "; expected ", expected));
  };
  if (!std::isfinite(scale)) return refuse("a finite number");
  const float magnitude = std::fabs(scale);
  if (scale == 0 || (magnitude >= std::numeric_limits<float>::min() && magnitude <= 2.3e38f)) {
    return absl::OkStatus();
  }
  return refuse("0 or a magnitude from 1.2e-38 to 2.3e38");
}

absl::Status MissingPage(int kv_head, int64_t block) {
  return absl::InternalError(absl::StrCat("the shard holds no page for KV head ", kv_head,
                                          ", block ", block, ", which the pattern reads"));
}

absl::Status AttendCancelled() {
  return absl::CancelledError("attention was cancelled");
}

}  // namespace annulus
