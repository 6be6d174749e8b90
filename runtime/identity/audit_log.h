// AuditLog: who did what to which context, and who was kept from it: one line each, in logfmt, to a
// file or to the process's log:
//   time=2026-01-02T03:04:05.678901Z event=audit call=Release context=7 outcome=OK name=ann
//     tenant=lab role=tenant client=ipv4:192.0.2.1:4711 detail="" left_out=0
// Of a tenant at most kLinesMax lines are written in a second, and its next line says how many were
// left out. Tenants beyond the first kTenantsMax share one such budget. Thread-safe.
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
  static constexpr size_t kTenantsMax = 64;

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

  AuditLog(std::string path, const Clock& clock) : path_(std::move(path)), clock_(clock) {}
  LineLimit& BudgetOf(const std::string& tenant);
  // False: with errno.
  bool OpenFile();
  bool WasMoved() const;
  bool Write(const std::string& line);

  const std::string path_;
  const Clock& clock_;
  std::mutex mutex_;  // of all that follows
  std::unique_ptr<std::FILE, CloseFile> file_;
  std::map<std::string, LineLimit> budgets_;
  LineLimit of_others_{kLinesMax, absl::Seconds(1)};
};

}  // namespace annulus
