// AuditLog: who did what to which context, and who was kept from it: one line each, in logfmt, to a
// file or to the process's log:
//   time=2026-01-02T03:04:05.678901Z event=audit call=Release context=7 outcome=OK name=ann
//     tenant=lab role=tenant client=ipv4:192.0.2.1:4711 detail="" left_out=0
// At most kLinesMax lines are written in a second of what succeeds for the callers of one tenant
// and role, as many of what is refused to them, and as many of all who are not known; the next line
// of the kind says how many were left out. Tenants and roles beyond the first kPartiesMax share the
// budgets of one. Thread-safe.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/clock.h"
#include "base/line_limit.h"
#include "runtime/identity/caller.h"

namespace annulus {

class AuditLog {
 public:
  static constexpr int kLinesMax = 50;
  static constexpr size_t kPartiesMax = 128;

  // Lines are added to the file at `path`, which is made if there is none, also after it was moved
  // away; empty: they go to the process's log, as those do that the file does not take.
  // INVALID_ARGUMENT names a file that cannot be written to. `clock` outlives this.
  static absl::StatusOr<std::unique_ptr<AuditLog>> Open(const std::string& path,
                                                        const Clock& clock = Clock::Real());

  // `context` 0: the call is about none.
  void Tell(absl::string_view call, const Caller& caller, absl::StatusCode outcome,
            uint64_t context = 0, absl::string_view detail = "");

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  // Refusals, which come easily, take no line from what succeeds.
  struct Budgets {
    LineLimit successes{kLinesMax, absl::Seconds(1)};
    LineLimit refusals{kLinesMax, absl::Seconds(1)};
  };

  AuditLog(std::string path, const Clock& clock) : path_(std::move(path)), clock_(clock) {}
  LineLimit& BudgetOf(const Caller& caller, absl::StatusCode outcome);
  // False: with errno.
  bool OpenFile();
  bool WasMoved() const;
  bool Write(const std::string& line);

  const std::string path_;
  const Clock& clock_;
  std::mutex mutex_;  // of all that follows
  std::unique_ptr<std::FILE, CloseFile> file_;
  std::map<std::pair<std::string, Role>, Budgets> budgets_;  // by tenant and role
  Budgets of_others_;
  LineLimit of_strangers_{kLinesMax, absl::Seconds(1)};
};

}  // namespace annulus
