// Names of tenants where there must not be too many: in labels of metrics and in what is kept for
// each. Those that come first keep their names, all others are "other". Thread-safe.
#pragma once

#include <cstddef>
#include <mutex>
#include <set>
#include <string>

namespace annulus {

inline constexpr size_t kTenantsNamedMax = 64;
inline constexpr char kOtherTenants[] = "other";

class TenantNames {
 public:
  std::string NameOf(const std::string& tenant) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (named_.count(tenant) != 0) return tenant;
    if (named_.size() >= kTenantsNamedMax) return kOtherTenants;
    named_.insert(tenant);
    return tenant;
  }

 private:
  std::mutex mutex_;
  std::set<std::string> named_;
};

}  // namespace annulus
