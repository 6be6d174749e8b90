// The pattern that a call is attended with: the context's own, which is parsed already, or the one
// that the call brings, parsed once and then found by its text. Thread-safe.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "attention/pattern.h"
#include "base/lru_cache.h"
#include "runtime/store/retention.h"

namespace annulus {

class PatternCache {
 public:
  // Of a layer of the context whose patterns `retention` has; `asked` is empty where the call
  // brings none. INVALID_ARGUMENT if it does not parse.
  absl::StatusOr<std::shared_ptr<const Pattern>> PatternOf(
      const std::shared_ptr<const Retention>& retention, int layer, const std::string& asked);

 private:
  std::mutex mutex_;
  LruCache<std::shared_ptr<const Pattern>> patterns_{64};
};

}  // namespace annulus
