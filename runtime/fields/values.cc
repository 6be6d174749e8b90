#include "runtime/fields/values.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/quoted.h"
#include "base/status.h"
#include "base/utf8.h"

namespace annulus {
namespace {

template <typename T>
std::optional<T> IfOk(const absl::StatusOr<T>& parsed) {
  return parsed.ok() ? std::optional<T>(*parsed) : std::nullopt;
}

absl::Status Bad(absl::string_view field, int64_t value, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, "; expected ", expected));
}

// A context must not end before its creator has heard of it.
absl::Status CheckLease(double lease) {
  constexpr double kLeaseMinS = 0.1;
  if (lease == 0 || lease >= kLeaseMinS) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("lease: ", lease,
                                                 "; expected 0, for a context that stays, or ",
                                                 kLeaseMinS, " to ", kLeaseMaxS));
}

absl::Status CheckText(absl::string_view field, const std::string& text) {
  if (IsUtf8(text)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", Quoted(text, 40), "; expected text in UTF-8"));
}

absl::Status CheckTexts(const ContextSpec& spec) {
  ANNULUS_RETURN_IF_ERROR(CheckText("owner", spec.owner));
  for (size_t i = 0; i < spec.patterns.size(); ++i) {
    ANNULUS_RETURN_IF_ERROR(CheckText(absl::StrCat("patterns[", i, "]"), spec.patterns[i]));
  }
  for (size_t i = 0; i < spec.tracks.size(); ++i) {
    ANNULUS_RETURN_IF_ERROR(CheckText(absl::StrCat("tracks[", i, "].name"), spec.tracks[i].name));
  }
  return absl::OkStatus();
}

absl::Status CheckPartition(const ContextSpec& spec) {
  switch (spec.partition.kind) {
    case PartitionKind::kBlockCyclic:
      if (spec.partition.unit_blocks < 1 || spec.partition.unit_blocks > kUnitBlocksMax) {
        return Bad("partition.unit_blocks", spec.partition.unit_blocks,
                   absl::StrCat("1 to ", kUnitBlocksMax));
      }
      return absl::OkStatus();
    case PartitionKind::kContiguous:
    case PartitionKind::kZigzag:
      if (spec.tokens_expected == 0) {
        return Bad("tokens_expected", 0,
                   absl::StrCat("the context's length with partition ", spec.partition.ToString(),
                                " (only block-cyclic grows without a known end)"));
      }
      return absl::OkStatus();
  }
  return Bad("partition.kind", static_cast<int64_t>(spec.partition.kind),
             "contiguous, zigzag or block-cyclic");
}

absl::Status CheckPatterns(const ContextSpec& spec) {
  const auto patterns = static_cast<int64_t>(spec.patterns.size());
  if (patterns > 1 && patterns != spec.layers) {
    return Bad("patterns", patterns,
               absl::StrCat("0, 1 or one for each of ", spec.layers, " layers"));
  }
  size_t bytes = 0;
  for (const std::string& pattern : spec.patterns) bytes += pattern.size();
  if (bytes > kContextPatternsBytesMax) {
    return Bad("bytes of patterns", static_cast<int64_t>(bytes),
               absl::StrCat("at most ", kContextPatternsBytesMax, " together"));
  }
  return absl::OkStatus();
}

absl::Status CheckTracks(const ContextSpec& spec) {
  const auto tracks = static_cast<int64_t>(spec.tracks.size());
  if (tracks > 0 && spec.kv_efficient) {
    return Bad("tracks", tracks, "none with kv_efficient, which keeps what patterns of KV need");
  }
  if (spec.layers * (1 + tracks) > kLayersMax) {
    return Bad("tracks", tracks,
               absl::StrCat("at most ", kLayersMax, " layers, those of tracks included"));
  }
  for (size_t i = 0; i < spec.tracks.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (spec.tracks[i].name != spec.tracks[j].name) continue;
      return absl::InvalidArgumentError(absl::StrCat("tracks[", i, "].name: that of tracks[", j,
                                                     "]; expected a name of its own"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::optional<DType> TextForm<DType>::Parse(absl::string_view text) {
  return IfOk(ParseDType(text));
}
std::optional<Placement> TextForm<Placement>::Parse(absl::string_view text) {
  return IfOk(ParsePlacement(text));
}
std::optional<PlanKind> TextForm<PlanKind>::Parse(absl::string_view text) {
  return IfOk(ParsePlanKind(text));
}
std::optional<PartitionSpec> TextForm<PartitionSpec>::Parse(absl::string_view text) {
  return IfOk(PartitionSpec::Parse(text));
}

std::string TextForm<PlanKind>::Expected() {
  std::string known = "one of ";
  for (const PlanKind kind : kPlanKinds) {
    absl::StrAppend(&known, kind == kPlanKinds[0] ? "" : ", ", Name(kind));
  }
  return known;
}

std::string TextForm<PartitionSpec>::Expected() {
  return absl::StrCat("zigzag, contiguous, striped or block-cyclic:N with N from 1 to ",
                      kUnitBlocksMax);
}

absl::Status CheckWhole(const ContextSpec& spec) {
  if (spec.heads % spec.kv_heads != 0) {
    return Bad("heads", spec.heads,
               absl::StrCat("a multiple of kv_heads ", spec.kv_heads, " up to ", kHeadsMax));
  }
  if (spec.v_is_k_prefix && spec.v_head_dim > spec.head_dim) {
    return Bad("v_head_dim", spec.v_head_dim,
               absl::StrCat("at most head_dim ", spec.head_dim, " with v_is_k_prefix"));
  }
  ANNULUS_RETURN_IF_ERROR(CheckLease(spec.lease));
  ANNULUS_RETURN_IF_ERROR(CheckTexts(spec));
  ANNULUS_RETURN_IF_ERROR(CheckPartition(spec));
  ANNULUS_RETURN_IF_ERROR(CheckTracks(spec));
  return CheckPatterns(spec);
}

}  // namespace annulus
