#include "runtime/identity/quotas.h"

#include "absl/strings/str_cat.h"
#include "base/quoted.h"

namespace annulus {

absl::Status AboveQuota(absl::string_view quota, int64_t quota_max, const std::string& tenant,
                        int64_t has, int64_t more) {
  return absl::ResourceExhaustedError(absl::StrCat(quota, ": ", has, " of tenant ", Quoted(tenant),
                                                   " and ", more, " more; expected at most ",
                                                   quota_max, ", its quota"));
}

}  // namespace annulus
