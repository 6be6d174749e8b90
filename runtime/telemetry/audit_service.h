// AuditService: a Service that has an AuditLog told what callers do to the contexts of another one:
// of each Create, Fork, Truncate and Release, and of all other calls where they were denied, for
// want of rights or since there is no such context, which is what callers are told of other
// tenants' too. Thread-safe.
#pragma once

#include "absl/status/statusor.h"
#include "runtime/identity/audit_log.h"
#include "runtime/service/service.h"

namespace annulus {

class AuditService final : public Service {
 public:
  // Both outlive this.
  AuditService(Service* inner, AuditLog* log) : inner_(inner), log_(log) {}

  absl::StatusOr<CallSize> Check(const AppendRequest& header, const CallContext& call) override;
  absl::StatusOr<CallSize> Check(const AttendRequest& header, const CallContext& call) override;

 private:
  absl::StatusOr<AnyAnswer> Answer(const AnyRequest& request, const CallContext& call) override;
  template <typename Request>
  absl::StatusOr<CallSize> CheckAny(const Request& header, const CallContext& call);

  Service* const inner_;
  AuditLog* const log_;
};

}  // namespace annulus
