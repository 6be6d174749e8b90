// BoundPatterns: patterns with lists that are kept over calls, so that a pattern is bound to them,
// and has its id, once. Who keeps a list gives it a number. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "annulus/key_list.h"
#include "attention/pattern.h"
#include "base/lru_cache.h"

namespace annulus {

struct NumberedList {
  std::string name;
  std::shared_ptr<const KeyListData> data;
  uint64_t number = 0;  // 0: of one call alone
};

// Whether what is made of the lists is worth being remembered.
bool AllAreKept(const std::vector<NumberedList>& lists);

// Whether a pattern's lists have this data.
bool Uses(const Pattern& pattern, const KeyListData& data);

class BoundPatterns {
 public:
  // `pattern` with these lists, for `heads` query heads: as BindLists, and remembered if all lists
  // are kept.
  absl::StatusOr<std::shared_ptr<const Pattern>> Bind(const Pattern& pattern,
                                                      const std::vector<NumberedList>& lists,
                                                      int heads);

  // What uses the data is forgotten.
  void Forget(const KeyListData& data);

 private:
  std::mutex mutex_;
  LruCache<std::shared_ptr<const Pattern>> patterns_{64};
};

}  // namespace annulus
