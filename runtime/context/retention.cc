#include "runtime/context/retention.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/selector.h"
#include "base/status.h"
#include "runtime/context/layout.h"

namespace annulus {
namespace {

std::optional<int64_t> FirstOf(const BlockSet& blocks) {
  if (blocks.empty()) return std::nullopt;
  return blocks.runs().front().first;
}

absl::Status Missing(int layer, int kv_head, int64_t block, absl::string_view who) {
  return absl::InvalidArgumentError(absl::StrCat("layer ", layer, " KV head ", kv_head,
                                                 " has let go of block ", block, ", which ", who,
                                                 " would read: the context is kv_efficient"));
}

}  // namespace

absl::StatusOr<Retention> Retention::Of(const ContextSpec& spec) {
  if (spec.kv_efficient && spec.patterns.empty()) {
    return absl::InvalidArgumentError(
        "patterns: 0; expected at least 1 with kv_efficient: they say what may be let go");
  }
  Retention retention;
  retention.kv_efficient_ = spec.kv_efficient;
  std::map<std::string, size_t> parsed;  // which layer's pattern has a text: few differ
  for (size_t layer = 0; layer < std::max<size_t>(1, spec.patterns.size()); ++layer) {
    const std::string text = PatternOf(spec, static_cast<int>(layer), "");
    const auto [same, is_new] = parsed.emplace(text, layer);
    if (!is_new) {
      retention.patterns_.push_back(retention.patterns_[same->second]);
      continue;
    }
    absl::StatusOr<Pattern> pattern = Pattern::Parse(text, spec.kv_heads);
    if (!pattern.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("patterns[", layer, "]: ", pattern.status().message()));
    }
    if (spec.kv_efficient && !pattern->selectors().empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("patterns[", layer, "]: ", pattern->selectors()[0]->name(),
                       " chooses among all keys; expected none in a context that is kv_efficient"));
    }
    retention.patterns_.push_back(*std::move(pattern));
  }
  return retention;
}

const Pattern& Retention::pattern(int layer) const {
  return patterns_[static_cast<size_t>(layer) % patterns_.size()];
}

BlockSet Retention::Gone(int layer, int kv_head, int64_t horizon) const {
  if (!kv_efficient_) return {};
  return pattern(layer).Evictable(kv_head, horizon, horizon);
}

absl::Status Retention::CheckReads(int layer, int64_t horizon, const Pattern& asked, TokenRange q,
                                   int64_t keys_end, const Stop& stop) const {
  if (!kv_efficient_) return absl::OkStatus();
  // Under the layer's own pattern, queries from the horizon on see nothing that is gone.
  const bool own = asked.text() == pattern(layer).text();
  const int64_t end = own ? std::min(q.end, horizon) : q.end;
  std::vector<TileRun> row;
  for (int head = 0; head < asked.kv_heads() && q.begin < end; ++head) {
    const BlockSet gone = Gone(layer, head, horizon);
    for (int64_t begin = q.begin; begin < end && !gone.empty();) {
      ANNULUS_RETURN_IF_ERROR(stop.status());
      const int64_t row_end = std::min(end, (begin / kBlockTokens + 1) * kBlockTokens);
      asked.Row(head, {begin, row_end}, keys_end, &row);
      for (const TileRun& seen : row) {
        const BlockSet blocks = BlockSet::FromRuns({seen.blocks}).Intersect(gone);
        if (const auto first = FirstOf(blocks)) {
          return Missing(layer, head, *first, absl::StrCat("queries [", begin, ", ", row_end, ")"));
        }
      }
      begin = row_end;
    }
  }
  return absl::OkStatus();
}

absl::Status Retention::CheckCut(int layer, int64_t horizon, int64_t tokens) const {
  const int64_t new_horizon = HorizonOf(tokens);
  if (!kv_efficient_ || new_horizon >= horizon) return absl::OkStatus();
  const BlockSet left = BlockSet::Range(0, BlocksOf(tokens));
  for (int head = 0; head < pattern(layer).kv_heads(); ++head) {
    const BlockSet missing =
        Gone(layer, head, horizon).Intersect(left).Subtract(Gone(layer, head, new_horizon));
    if (const auto first = FirstOf(missing)) {
      return Missing(layer, head, *first, absl::StrCat("queries from token ", tokens, " on"));
    }
  }
  return absl::OkStatus();
}

}  // namespace annulus
