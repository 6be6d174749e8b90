// Patterns that calls bring: parsed once, and then found by their text. Thread-safe.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "attention/pattern.h"
#include "base/lru_cache.h"
#include "runtime/context/retention.h"

namespace annulus {

class PatternCache {
 public:
  // INVALID_ARGUMENT if it does not parse.
  absl::StatusOr<std::shared_ptr<const Pattern>> Parse(const std::string& text, int kv_heads);

  // What a layer of the context whose patterns `retention` has is attended with: its own, or the
  // one that is asked for, unless that is empty.
  absl::StatusOr<std::shared_ptr<const Pattern>> PatternOf(
      const std::shared_ptr<const Retention>& retention, int layer, const std::string& asked);
  // The same, or null if it would have to be parsed.
  std::shared_ptr<const Pattern> Recall(const std::shared_ptr<const Retention>& retention,
                                        int layer, const std::string& asked);

 private:
  static std::string KeyOf(const std::string& text, int kv_heads);

  std::mutex mutex_;
  LruCache<std::shared_ptr<const Pattern>> patterns_{64};
};

}  // namespace annulus
