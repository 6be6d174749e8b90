#include "runtime/cli/quality/compression.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/cli/options/options.h"
#include "runtime/limits.h"

namespace annulus {
namespace {

constexpr int64_t kSnapKvQueries = 32;
constexpr int kSnapKvPool = 7;

}  // namespace

absl::StatusOr<Compression> ParseCompression(absl::string_view text) {
  absl::string_view number = text;
  const bool snapkv = absl::ConsumePrefix(&number, "snapkv(");
  const bool h2o = !snapkv && absl::ConsumePrefix(&number, "h2o(");
  if ((!snapkv && !h2o) || !absl::ConsumeSuffix(&number, ")")) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quoted(text), "; expected snapkv(KEEP) or h2o(KEEP)"));
  }
  ANNULUS_ASSIGN_OR_RETURN(const int64_t keep, ParseCount(number, 1, kContextTokensMax));
  Compression made{.text = std::string(text)};
  made.rule.keep = keep;
  made.rule.recent = snapkv ? std::min(keep, kSnapKvQueries) : keep / 2;
  made.rule.pool_width = snapkv ? kSnapKvPool : 1;
  made.voters_max = snapkv ? kSnapKvQueries : kContextTokensMax;
  return made;
}

absl::StatusOr<CompressedRows> Compressed(const Compression& compression, const TensorView& q,
                                          const TensorView& k, const TensorView& v,
                                          Backend& backend) {
  const int64_t voters = std::min(q.tokens, compression.voters_max);
  const float scale = 1 / std::sqrt(static_cast<float>(k.dim));
  return CompressLocally(q.Tokens(q.tokens - voters, voters), k.tokens - voters, k, v, scale,
                         compression.rule, backend.pool());
}

Tensor Joined(const TensorView& rows, const TensorView& more) {
  Tensor joined(rows.dtype, rows.tokens + more.tokens, rows.heads, rows.dim);
  const size_t row_bytes = static_cast<size_t>(rows.dim) * SizeOf(rows.dtype);
  std::byte* to = joined.data();
  for (const TensorView& part : {rows, more}) {
    for (int64_t token = 0; token < part.tokens; ++token) {
      for (int head = 0; head < part.heads; ++head, to += row_bytes) {
        std::memcpy(to, part.Row(token, head), row_bytes);
      }
    }
  }
  return joined;
}

}  // namespace annulus
