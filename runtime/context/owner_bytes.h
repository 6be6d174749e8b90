// What the contexts of one owner hold on one worker. A value.
#pragma once

#include <cstdint>
#include <string>

namespace annulus {

struct OwnerBytes {
  std::string owner;
  int64_t kv_bytes = 0;  // blocks that forks share count once

  friend bool operator==(const OwnerBytes&, const OwnerBytes&) = default;
};

}  // namespace annulus
