#include "runtime/identity/audit_log.h"

#include <cerrno>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/log.h"
#include "base/quoted.h"

namespace annulus {

absl::StatusOr<std::unique_ptr<AuditLog>> AuditLog::Open(const std::string& path,
                                                         const Clock& clock) {
  std::unique_ptr<AuditLog> log(new AuditLog(clock));
  if (path.empty()) return log;
  log->file_.reset(std::fopen(path.c_str(), "ae"));  // others may cut it or move it away meanwhile
  if (log->file_ != nullptr) return log;
  return absl::InvalidArgumentError(absl::StrCat("audit_log: ", QuotedEnd(path), ": ",
                                                 std::strerror(errno),
                                                 "; expected a file that can be written to"));
}

// With the mutex held.
LineLimit& AuditLog::BudgetOf(const std::string& tenant) {
  const auto found = budgets_.find(tenant);
  if (found != budgets_.end()) return found->second;
  if (budgets_.size() >= kTenantsMax) return of_others_;
  return budgets_.emplace(tenant, LineLimit(kLinesMax, absl::Seconds(1))).first->second;
}

void AuditLog::Tell(absl::string_view call, const Caller& caller, absl::StatusCode outcome,
                    uint64_t context, absl::string_view detail) {
  const absl::Time now = clock_.Now();
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::optional<int64_t> left_out = BudgetOf(caller.tenant).Admit(now);
  if (!left_out.has_value()) return;
  // Who is not known has no role.
  const absl::string_view role = caller.name.empty() ? "none" : Name(caller.role);
  const auto fields = {LogField("call", call),
                       LogField("context", context == 0 ? "none" : absl::StrCat(context)),
                       LogField("outcome", absl::StatusCodeToString(outcome)),
                       LogField("name", caller.name),
                       LogField("tenant", caller.tenant),
                       LogField("role", role),
                       LogField("client", caller.client),
                       LogField("detail", detail),
                       LogField("left_out", *left_out)};
  if (file_ == nullptr) return Log(LogLevel::kInfo, "audit", fields);
  const std::string line =
      absl::StrCat("time=", absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", now, absl::UTCTimeZone()), " ",
                   LogLine("audit", fields), "\n");
  // A disk that is full must not stop the service: the lines that follow say what is missing.
  std::fwrite(line.data(), 1, line.size(), file_.get());
  std::fflush(file_.get());
}

}  // namespace annulus
