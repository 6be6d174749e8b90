#include "runtime/context/pattern_cache.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace annulus {

std::string PatternCache::KeyOf(const std::string& text, int kv_heads) {
  return absl::StrCat(kv_heads, " ", text);
}

absl::StatusOr<std::shared_ptr<const Pattern>> PatternCache::Parse(const std::string& text,
                                                                   int kv_heads) {
  const std::string key = KeyOf(text, kv_heads);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto* found = patterns_.Find(key)) return *found;
  }
  ANNULUS_ASSIGN_OR_RETURN(Pattern parsed, Pattern::Parse(text, kv_heads));
  auto pattern = std::make_shared<const Pattern>(std::move(parsed));
  const std::lock_guard<std::mutex> lock(mutex_);
  patterns_.Insert(key, pattern);
  return pattern;
}

absl::StatusOr<std::shared_ptr<const Pattern>> PatternCache::PatternOf(
    const std::shared_ptr<const Retention>& retention, int layer, const std::string& asked) {
  const Pattern& own = retention->pattern(layer);
  if (!asked.empty() && asked != own.text()) return Parse(asked, own.kv_heads());
  return std::shared_ptr<const Pattern>(retention, &own);  // lives as long as the context's
}

std::shared_ptr<const Pattern> PatternCache::Recall(
    const std::shared_ptr<const Retention>& retention, int layer, const std::string& asked) {
  const Pattern& own = retention->pattern(layer);
  if (asked.empty() || asked == own.text()) return {retention, &own};
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto* found = patterns_.Find(KeyOf(asked, own.kv_heads()));
  return found == nullptr ? nullptr : *found;
}

}  // namespace annulus
