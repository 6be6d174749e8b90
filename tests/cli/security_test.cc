// A cluster of processes that asks who calls: everybody brings a token in a file, and secrets
// change under way.
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/catch.h"
#include "tests/cli/program.h"
#include "tests/identity/signer.h"

namespace annulus {
namespace {

using nlohmann::json;
using test::Outcome;
using test::Program;
using test::RunHere;
using test::Variables;

std::string Entry(absl::string_view token, absl::string_view role) {
  return absl::StrCat(R"({"name":")", role, R"(","tenant":"lab","role":")", role, R"(","sha256":")",
                      test::Sha256Hex(token), R"("})");
}

// The files of --auth and --token-file.
struct Secrets {
  explicit Secrets(absl::string_view serial) { Change(serial); }

  // Other tokens for all.
  void Change(absl::string_view serial) const {
    std::string entries;
    for (const char* role : {"admin", "tenant", "reader", "worker"}) {
      const std::string token = absl::StrCat(role, "-secret-", serial);
      test::WriteBytes(Token(role), token + "\n");
      absl::StrAppend(&entries, entries.empty() ? "" : ",", Entry(token, role));
    }
    test::WriteBytes(Auth(), absl::StrCat(R"({"tokens":[)", entries, "]}"));
  }

  std::string Auth() const { return folder / "auth.json"; }
  std::string Token(absl::string_view role) const { return folder / role; }

  test::TempFolder folder;
};

template <typename Done>
bool Within(absl::Duration patience, Done done) {
  const absl::Time deadline = absl::Now() + patience;
  while (!done()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(50));
  }
  return true;
}

TEST_CASE("a cluster with --auth serves those who bring a token, and goes on when all change") {
  const Secrets secrets("1");
  Program coordinator(
      {"coordinator", "--listen", "127.0.0.1:0", "--auth", secrets.Auth(), "--reload-s", "1"});
  const std::string endpoint = coordinator.ReadLine().substr(6);
  const Program worker({"worker", "--coordinator", endpoint, "--threads", "1", "--token-file",
                        secrets.Token("worker")});
  const auto status = [&](absl::string_view role) {
    return RunHere(
        {"status", "--endpoint", endpoint, "--json", "--token-file", secrets.Token(role)});
  };
  REQUIRE(Within(absl::Seconds(20), [&] {
    const Outcome outcome = status("reader");
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    const json workers = json::parse(outcome.out)["workers"];
    return workers.size() == 1 && workers[0]["state"] == "ready";
  }));

  const Outcome nobody = RunHere({"status", "--endpoint", endpoint});
  CHECK(nobody.code == 1);
  CHECK(absl::StrContains(nobody.err, "UNAUTHENTICATED: authorization: not accepted"));
  const Outcome denied = status("worker");
  CHECK(denied.code == 1);
  CHECK(absl::StrContains(denied.err, "PERMISSION_DENIED: role: worker"));
  CHECK(RunHere({"contexts", "--endpoint", endpoint},
                Variables{{"ANNULUS_TOKEN_FILE", secrets.Token("tenant")}})
            .code == 0);
  Program stranger({"worker", "--coordinator", endpoint, "--threads", "1", "--token-file",
                    secrets.Token("tenant")});
  const Outcome turned_away = stranger.Wait();
  CHECK(turned_away.code == 1);
  CHECK(absl::StrContains(turned_away.err, "PERMISSION_DENIED: "));

  // The old tokens end and new ones begin, without a restart.
  const std::string old = secrets.folder / "old";
  test::WriteBytes(old, "reader-secret-1");
  secrets.Change("2");
  CHECK(Within(absl::Seconds(20), [&] { return status("reader").code == 0; }));
  CHECK(RunHere({"status", "--endpoint", endpoint, "--token-file", old}).code == 1);
  test::WriteBytes(secrets.Auth(), "{");
  CHECK(Within(absl::Seconds(20), [&] {
    return absl::StrContains(coordinator.err(), "since its new file is spoilt");
  }));
  CHECK(status("reader").code == 0);
}

TEST_CASE("files of security that are spoilt are refused by name at start") {
  const test::TempFolder folder;
  test::WriteBytes(folder / "auth", R"({"tokens":[{"name":"a","role":"king","sha256":"00"}]})");
  const auto refused = [](const Arguments& args, absl::string_view what) {
    const Outcome outcome = RunHere(args);
    INFO(outcome.err);
    CHECK(test::IsRefusal(outcome));
    CHECK(absl::StrContains(outcome.err, what));
  };
  refused({"coordinator", "--listen", "127.0.0.1:0", "--auth", folder / "auth"},
          "tokens[0].sha256: \"00\"; expected 64 hex digits");
  refused({"coordinator", "--listen", "127.0.0.1:0", "--auth", folder / "none"}, "--auth: file");
  refused({"worker", "--coordinator", "127.0.0.1:1", "--token-file", folder / "none"},
          "token_file: file");
}

}  // namespace
}  // namespace annulus
