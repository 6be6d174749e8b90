// KeptHandles: which lists the service is believed to keep, so that their handles are all that is
// sent. A service that has forgotten one says so, and the list's data goes with twice as many calls
// as the last time before that is tried again. Thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "annulus/key_list.h"
#include "base/lru_cache.h"

namespace annulus {

class KeptHandles {
 public:
  static bool HasAny(const std::vector<CallList>& lists);

  // The lists as they are sent.
  std::vector<CallList> ToSend(const std::vector<CallList>& lists);

  // How a call went that had sent them.
  void Answered(const std::vector<CallList>& lists, const absl::Status& status);

 private:
  using Key = std::array<int64_t, 2>;
  struct Known {
    int with_data = 0;  // calls that still bring the data
    int next_time = 1;  // how many will, once the service has forgotten the list
  };
  static Key KeyOf(const ListHandle& handle);

  std::mutex mutex_;
  LruCache<Known, Key, NumbersHash> known_{4096};
};

}  // namespace annulus
