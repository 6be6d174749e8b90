// A cluster of processes that asks who calls: everybody brings a token in a file, and secrets
// change under way.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "tests/catch.h"
#include "tests/certificates.h"
#include "tests/cli/program.h"
#include "tests/identity/signer.h"
#include "tests/rpc/scrape.h"

namespace annulus {
namespace {

using nlohmann::json;
using test::Outcome;
using test::Program;
using test::RunHere;
using test::Variables;
using test::Within;

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

int PortAfter(const std::string& text, const std::string& mark) {
  const size_t at = text.find(mark);
  REQUIRE(at != std::string::npos);
  return std::stoi(text.substr(at + mark.size()));
}

TEST_CASE("a cluster with --auth serves those who bring a token, and goes on when all change") {
  const Secrets secrets("1");
  Program coordinator({"coordinator", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
                       "--auth", secrets.Auth(), "--reload-s", "1"});
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

  // The page, which asks nobody who it is, tells no more than a reader is told.
  const std::string page =
      test::AskLoopback(coordinator.HttpPort(), test::HttpRequest("GET", "/status.json"));
  CHECK(absl::StrContains(page, "\"address\":\"\""));
  CHECK(!absl::StrContains(page, "ucx:"));

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
          "tokens[0].sha256: a text of 2 bytes; expected 64 hex digits");
  refused({"coordinator", "--listen", "127.0.0.1:0", "--auth", folder / "none"}, "--auth: file");
  test::WriteBytes(folder / "alone", R"({"certificates":[{"name":"a","role":"admin"}]})");
  refused({"coordinator", "--listen", "127.0.0.1:0", "--auth", folder / "alone"},
          "certificates: 1, and callers are asked for none; expected tokens or jwt");
  refused({"worker", "--coordinator", "127.0.0.1:1", "--token-file", folder / "none"},
          "token_file: file");
}

TEST_CASE("whoever would serve strangers unprotected is told what is missing, or says so") {
  const Secrets secrets("1");
  const auto refused = [](const Arguments& args, absl::string_view what) {
    const Outcome outcome = RunHere(args);
    INFO(outcome.err);
    CHECK(test::IsRefusal(outcome));
    CHECK(absl::StrContains(outcome.err, what));
  };
  refused({"coordinator", "--listen", "0.0.0.0:0"},
          "--listen: \"0.0.0.0:0\" is not loopback; expected TLS (--tls-cert, --tls-key) and to be "
          "told who may call (--auth or --tls-client-ca), or --insecure");
  refused({"coordinator", "--listen", "0.0.0.0:0", "--auth", secrets.Auth()},
          "expected TLS (--tls-cert, --tls-key), or --insecure");
  refused({"coordinator", "--listen", "[::]:0", "--tls-cert", "c", "--tls-key", "k"},
          "expected to be told who may call");
  refused({"worker", "--coordinator", "192.0.2.1:7070"}, "--coordinator: \"192.0.2.1:7070\"");
  refused({"up", "--listen", "0.0.0.0:0"}, "--listen: \"0.0.0.0:0\"");
  refused({"worker", "--coordinator", "localhost:1", "--plain-data", "--auth", secrets.Auth()},
          "--auth: with --plain-data");

  Program open(
      {"coordinator", "--listen", "0.0.0.0:0", "--insecure", "--http-listen", "127.0.0.1:0"});
  CHECK(absl::StartsWith(open.ReadLine(), "ready 0.0.0.0:"));
  CHECK(absl::StrContains(open.err(), "insecure: what is not protected"));
  CHECK(test::ValueOf(test::Scrape(PortAfter(open.err(), "event=http port=")),
                      "annulus_insecure") == 1);
}

// How many TCP sockets of a process listen, and how many of them beyond this machine.
struct Ports {
  int all = 0;
  int beyond_loopback = 0;
};
Ports PortsOf(pid_t pid) {
  std::set<std::string> sockets;
  for (const auto& entry :
       std::filesystem::directory_iterator(absl::StrCat("/proc/", pid, "/fd"))) {
    std::error_code gone;
    sockets.insert(std::filesystem::read_symlink(entry.path(), gone));
  }
  Ports ports;
  for (const char* table : {"/proc/net/tcp", "/proc/net/tcp6"}) {
    std::ifstream file(table);
    for (std::string line; std::getline(file, line);) {
      const std::vector<std::string> fields = absl::StrSplit(line, ' ', absl::SkipEmpty());
      if (fields.size() < 10 || fields[3] != "0A") continue;
      if (sockets.count(absl::StrCat("socket:[", fields[9], "]")) == 0) continue;
      ++ports.all;
      const std::string host = fields[1].substr(0, fields[1].find(':'));
      const bool here = host.size() == 8 ? absl::EndsWith(host, "7F")
                                         : host == "00000000000000000000000001000000";
      if (!here) ++ports.beyond_loopback;
    }
  }
  return ports;
}

TEST_CASE("a cluster at loopback has no port beyond it, and pages beyond it are warned of") {
  const auto open = [](const std::string& http) {
    return Arguments{"coordinator", "--listen", "127.0.0.1:0", "--http-listen", http};
  };
  Program coordinator(open("127.0.0.1:0"));
  const std::string endpoint = coordinator.ReadLine().substr(6);
  const std::string port = endpoint.substr(endpoint.rfind(':'));
  const int page = coordinator.HttpPort();
  Program worker({"worker", "--coordinator", endpoint, "--threads", "1"});
  Program by_name({"worker", "--coordinator", "localhost" + port, "--threads", "1"});
  CHECK(Within(absl::Seconds(20), [&] {
    return test::ValueOf(test::Scrape(page), R"(annulus_workers{state="ready"})") == 2;
  }));
  for (const Program* program : {&coordinator, &worker, &by_name}) {
    const Ports ports = PortsOf(program->pid());
    CHECK(ports.all > 1);
    CHECK(ports.beyond_loopback == 0);
  }
  CHECK(!absl::StrContains(coordinator.err(), "level=warning"));
  Program told(open("0.0.0.0:0"));
  CHECK(absl::StartsWith(told.ReadLine(), "ready "));
  CHECK(absl::StrContains(told.err(), "level=warning event=\"http: the pages ask nobody"));
}

TEST_CASE("a cluster over TLS: certificates and tokens are replaced, and it serves on") {
  const Secrets secrets("1");
  const test::Authority authority;
  const std::string ca = secrets.folder.Write("ca.pem", authority.certificate());
  const auto install = [&](const test::Authority& by) {
    const test::Certificate certificate = by.Issue();
    secrets.folder.Write("cert.pem", certificate.certificate);
    secrets.folder.Write("key.pem", certificate.key);
  };
  install(authority);
  const Arguments tls = {"--tls-cert",      secrets.folder / "cert.pem",
                         "--tls-key",       secrets.folder / "key.pem",
                         "--tls-client-ca", ca,
                         "--reload-s",      "1"};
  const auto with = [](Arguments args, const Arguments& more) {
    args.insert(args.end(), more.begin(), more.end());
    return args;
  };
  Program coordinator(
      with({"coordinator", "--listen", "127.0.0.1:0", "--auth", secrets.Auth()}, tls));
  const std::string endpoint = coordinator.ReadLine().substr(6);
  const Program worker(with({"worker", "--coordinator", endpoint, "--threads", "1", "--tls-ca", ca,
                             "--token-file", secrets.Token("worker")},
                            tls));
  const Arguments client = {"--endpoint", endpoint,
                            "--tls-ca",   ca,
                            "--tls-cert", secrets.folder / "cert.pem",
                            "--tls-key",  secrets.folder / "key.pem"};
  const auto status = [&] {
    return RunHere(with({"status", "--json", "--token-file", secrets.Token("reader")}, client));
  };
  REQUIRE(Within(absl::Seconds(30), [&] {
    const Outcome outcome = status();
    INFO(outcome.err);
    REQUIRE(outcome.code == 0);
    const json workers = json::parse(outcome.out)["workers"];
    return workers.size() == 1 && workers[0]["state"] == "ready" &&
           absl::StartsWith(workers[0]["data_address"].get<std::string>(), "tls://127.0.0.1:");
  }));
  // KV goes over TLS too.
  Rng rng(1);
  for (const char* name : {"q", "k", "v"}) {
    secrets.folder.Write(absl::StrCat(name, ".npy"),
                         test::TestTensor::Random(rng, DType::kF32, {64, 2, 16}).Npy());
  }
  const auto attend = [&] {
    return RunHere(with({"attend", "--q", secrets.folder / "q.npy", "--k", secrets.folder / "k.npy",
                         "--v", secrets.folder / "v.npy", "--out", secrets.folder / "o.npy",
                         "--pattern", "causal", "--token-file", secrets.Token("tenant")},
                        client));
  };
  // One that trusts others says why it cannot join.
  const std::string other_ca =
      secrets.folder.Write("other.pem", test::Authority("others").certificate());
  Program wary(with({"worker", "--coordinator", endpoint, "--threads", "1", "--tls-ca", other_ca,
                     "--token-file", secrets.Token("worker")},
                    tls));
  CHECK(Within(absl::Seconds(20),
               [&] { return absl::StrContains(wary.err(), "certificate verify failed"); }));
  const Outcome first = attend();
  INFO(first.err);
  CHECK(first.code == 0);
  install(authority);
  secrets.Change("2");
  CHECK(Within(absl::Seconds(30), [&] { return attend().code == 0; }));
}

}  // namespace
}  // namespace annulus
