// Lines of the audit log: what they say, and how many there are.
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/identity/audit_log.h"
#include "tests/catch.h"
#include "tests/stderr_into.h"
#include "tests/temp_folder.h"

namespace annulus {
namespace {

struct HandClock final : Clock {
  absl::Time Now() const override { return now; }
  absl::Time now = absl::UnixEpoch();
};

std::vector<std::string> LinesOf(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

TEST_CASE("a line says who did what, and what comes from outside cannot break it") {
  const test::TempFolder folder;
  const HandClock clock;
  const std::string path = folder / "audit.log";
  {
    const auto log = AuditLog::Open(path, clock).value();
    Caller ann{"ann", "lab", Role::kTenant};
    ann.client = "ipv4:192.0.2.1:4711";
    log->Tell("Release", ann, absl::StatusCode::kOk, 7);
    ann.name = "a\nb event=audit";
    log->Tell("Join", ann, absl::StatusCode::kPermissionDenied, 0, "role: tenant");
  }
  (void)AuditLog::Open(path, clock).value();  // adds to what is there
  const std::vector<std::string> lines = LinesOf(path);
  REQUIRE(lines.size() == 2);
  CHECK(lines[0] ==
        "time=1970-01-01T00:00:00.000000Z event=audit call=Release context=7 outcome=OK name=ann "
        "tenant=lab role=tenant client=ipv4:192.0.2.1:4711 detail=\"\" left_out=0");
  CHECK(absl::StrContains(lines[1], "context=none outcome=PERMISSION_DENIED"));
  CHECK(absl::StrContains(lines[1], "name=\"a\\nb event=audit\""));
  CHECK(absl::StrContains(AuditLog::Open(folder / "none/audit.log").status().message(),
                          "audit_log: "));
}

TEST_CASE("a file that was moved away is made anew, and one that takes nothing loses no line") {
  const test::TempFolder folder;
  const std::string path = folder / "audit.log";
  const Caller ann{"ann", "lab", Role::kTenant};
  const auto log = AuditLog::Open(path).value();
  log->Tell("Fork", ann, absl::StatusCode::kOk, 1);
  std::filesystem::rename(path, path + ".1");
  log->Tell("Release", ann, absl::StatusCode::kOk, 2);
  CHECK(LinesOf(path + ".1").size() == 1);
  REQUIRE(LinesOf(path).size() == 1);
  CHECK(absl::StrContains(LinesOf(path)[0], "call=Release"));
  const auto mode = std::filesystem::status(path).permissions();
  CHECK((mode & std::filesystem::perms::others_all) == std::filesystem::perms::none);

  const auto full = AuditLog::Open("/dev/full").value();
  {
    const test::StderrInto file(folder / "stderr");
    full->Tell("Truncate", ann, absl::StatusCode::kOk, 3);
  }
  const std::vector<std::string> told = LinesOf(folder / "stderr");
  REQUIRE(told.size() == 2);
  CHECK(absl::StrContains(told[0], "the audit log does not take its lines"));
  CHECK(absl::StrContains(told[1], "event=audit call=Truncate"));
}

TEST_CASE("a tenant that is told of too often costs others no lines, and what is missing is told") {
  const test::TempFolder folder;
  HandClock clock;
  const std::string path = folder / "audit.log";
  const auto log = AuditLog::Open(path, clock).value();
  const Caller loud{"l", "loud", Role::kTenant};
  for (int i = 0; i < 200; ++i) log->Tell("Describe", loud, absl::StatusCode::kNotFound, 1);
  log->Tell("Release", {"q", "quiet", Role::kTenant}, absl::StatusCode::kOk, 2);
  std::vector<std::string> lines = LinesOf(path);
  REQUIRE(lines.size() == AuditLog::kLinesMax + 1);
  CHECK(absl::StrContains(lines.back(), "tenant=quiet"));
  clock.now += absl::Seconds(1);
  log->Tell("Describe", loud, absl::StatusCode::kNotFound, 1);
  lines = LinesOf(path);
  CHECK(absl::StrContains(lines.back(), absl::StrCat("left_out=", 200 - AuditLog::kLinesMax)));
  // What succeeds for a tenant is told beside all that it is refused.
  log->Tell("Release", loud, absl::StatusCode::kOk, 4);
  CHECK(absl::StrContains(LinesOf(path).back(), "call=Release context=4"));
  lines = LinesOf(path);
  // Tenants without end share a budget once there are many.
  for (int i = 0; i < 1000; ++i) {
    log->Tell("Release", {"n", absl::StrCat("t", i), Role::kTenant}, absl::StatusCode::kOk, 3);
  }
  CHECK(LinesOf(path).size() <= lines.size() + AuditLog::kPartiesMax + AuditLog::kLinesMax);
}

TEST_CASE(
    "strangers without end cost no line of the admins and workers, who have no tenant either") {
  const test::TempFolder folder;
  HandClock clock;
  const std::string path = folder / "audit.log";
  const auto log = AuditLog::Open(path, clock).value();
  const auto told = [&](absl::string_view field) {
    int count = 0;
    for (const std::string& line : LinesOf(path)) count += absl::StrContains(line, field) ? 1 : 0;
    return count;
  };
  const Caller root{"root", "", Role::kAdmin};
  const Caller probe{"probe", "", Role::kReader};
  const Caller worker{"w1", "", Role::kWorker};
  for (int i = 0; i < 1000; ++i) {
    log->Tell("Status", {"", "", Role::kReader}, absl::StatusCode::kUnauthenticated);
    log->Tell("Describe", probe, absl::StatusCode::kNotFound, 1);
  }
  for (int i = 0; i < 20; ++i) {
    log->Tell("Release", root, absl::StatusCode::kOk, 2);
    log->Tell("Describe", root, absl::StatusCode::kNotFound, 3);
    log->Tell("Join", worker, absl::StatusCode::kOk);
    log->Tell("reload", {}, absl::StatusCode::kOk);
  }
  CHECK(told("outcome=UNAUTHENTICATED") == AuditLog::kLinesMax);
  CHECK(told("name=probe") == AuditLog::kLinesMax);
  CHECK(told("name=root") == 40);
  CHECK(told("name=w1") == 20);
  CHECK(told("call=reload") == 20);
  clock.now += absl::Seconds(1);
  log->Tell("Status", {"", "", Role::kReader}, absl::StatusCode::kUnauthenticated);
  CHECK(absl::StrContains(LinesOf(path).back(), "left_out=950"));
}

}  // namespace
}  // namespace annulus
