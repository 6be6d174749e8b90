#include "runtime/identity/audit_log.h"

#include <fcntl.h>
#include <sys/stat.h>

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
  std::unique_ptr<AuditLog> log(new AuditLog(path, clock));
  if (path.empty() || log->OpenFile()) return log;
  return absl::InvalidArgumentError(absl::StrCat("audit_log: ", QuotedEnd(path), ": ",
                                                 std::strerror(errno),
                                                 "; expected a file that can be written to"));
}

// Others may cut it meanwhile. What it tells is for its owner and their group.
bool AuditLog::OpenFile() {
  file_.reset();
  const int file = open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
  if (file >= 0) file_.reset(fdopen(file, "a"));
  return file_ != nullptr;
}

bool AuditLog::WasMoved() const {
  struct stat open_one, there;
  return fstat(fileno(file_.get()), &open_one) != 0 || stat(path_.c_str(), &there) != 0 ||
         open_one.st_ino != there.st_ino || open_one.st_dev != there.st_dev;
}

bool AuditLog::Write(const std::string& line) {
  if ((file_ == nullptr || WasMoved()) && !OpenFile()) return false;
  const bool written = std::fwrite(line.data(), 1, line.size(), file_.get()) == line.size() &&
                       std::fflush(file_.get()) == 0;
  if (!written) file_.reset();  // what is kept of the line is not written later, too
  return written;
}

// With the mutex held.
LineLimit& AuditLog::BudgetOf(const Caller& caller, absl::StatusCode outcome) {
  if (outcome == absl::StatusCode::kUnauthenticated) return of_strangers_;
  const std::pair party(caller.tenant, caller.role);
  auto found = budgets_.find(party);
  if (found == budgets_.end() && budgets_.size() < kPartiesMax) {
    found = budgets_.try_emplace(party).first;
  }
  Budgets& budgets = found == budgets_.end() ? of_others_ : found->second;
  return outcome == absl::StatusCode::kOk ? budgets.successes : budgets.refusals;
}

void AuditLog::Tell(absl::string_view call, const Caller& caller, absl::StatusCode outcome,
                    uint64_t context, absl::string_view detail) {
  const absl::Time now = clock_.Now();
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::optional<int64_t> left_out = BudgetOf(caller, outcome).Admit(now);
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
  if (path_.empty()) return Log(LogLevel::kInfo, "audit", fields);
  const std::string line =
      absl::StrCat("time=", absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", now, absl::UTCTimeZone()), " ",
                   LogLine("audit", fields), "\n");
  if (Write(line)) return;
  // A disk that is full must not stop the service.
  Log(LogLevel::kError, "the audit log does not take its lines, they are told here",
      {{"file", path_}, {"why", std::strerror(errno)}});
  Log(LogLevel::kInfo, "audit", fields);
}

}  // namespace annulus
