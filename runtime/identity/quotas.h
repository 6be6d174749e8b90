// Quotas: what one tenant may take of the service, as the file of --auth says it. Plain values;
// thread-safe functions.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace annulus {

inline constexpr int64_t kNoQuota = INT64_MAX;

struct TenantQuotas {
  int64_t contexts_max = kNoQuota;
  int64_t kv_bytes_max = kNoQuota;
  int64_t calls_in_flight_max = kNoQuota;
  int64_t bytes_in_flight_max = kNoQuota;  // of the tensors of those calls
  int64_t streams_max = kNoQuota;          // of steps, open at once
  int64_t creates_per_s_max = kNoQuota;    // contexts made, forks among them
};

struct Quotas {
  TenantQuotas of_others;  // "default" in the file: of tenants that have no entry
  std::map<std::string, TenantQuotas> by_tenant;

  const TenantQuotas& Of(const std::string& tenant) const {
    const auto found = by_tenant.find(tenant);
    return found == by_tenant.end() ? of_others : found->second;
  }
};

// RESOURCE_EXHAUSTED, which names the quota, its value and what the tenant has: `more` would be too
// many.
absl::Status AboveQuota(absl::string_view quota, int64_t quota_max, const std::string& tenant,
                        int64_t has, int64_t more);

}  // namespace annulus
