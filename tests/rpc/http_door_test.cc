// Pages over HTTP: what is answered, to whom, and what strangers on the port can do.
#include "runtime/http/http_door.h"

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/rpc/scrape.h"

namespace annulus {
namespace {

using test::AskLoopback;
using test::HttpRequest;

std::unique_ptr<HttpDoor> Open() {
  std::map<std::string, HttpPage> pages;
  pages["/good"] = [] { return ProbeAnswer(absl::OkStatus()); };
  pages["/bad"] = [] { return ProbeAnswer(absl::UnavailableError("it waits")); };
  pages["/metrics"] = [] { return HttpAnswer{.body = "\nup 1\n"}; };
  auto door = HttpDoor::Start("127.0.0.1:0", pages);
  INFO(door.status());
  REQUIRE(door.ok());
  return *std::move(door);
}

TEST_CASE("pages are answered by path, to GET and HEAD alone") {
  const auto door = Open();
  const std::string good = AskLoopback(door->port(), HttpRequest("GET", "/good"));
  CHECK(absl::StartsWith(good, "HTTP/1.1 200 "));
  CHECK(absl::EndsWith(good, "\r\n\r\nok\n"));
  CHECK(absl::StrContains(good, "Content-Security-Policy: default-src 'none'"));
  const std::string bad = AskLoopback(door->port(), HttpRequest("GET", "/bad?x=1"));
  CHECK(absl::StartsWith(bad, "HTTP/1.1 503 "));
  CHECK(absl::EndsWith(bad, "\r\n\r\nit waits\n"));
  CHECK(absl::EndsWith(AskLoopback(door->port(), HttpRequest("HEAD", "/good")), "\r\n\r\n"));
  const std::string none = AskLoopback(door->port(), HttpRequest("GET", "/goo"));
  CHECK(absl::StartsWith(none, "HTTP/1.1 404 "));
  CHECK(absl::EndsWith(none, "expected one of /bad /good /metrics\n"));
  for (const char* method : {"POST", "DELETE", "BREW"}) {
    CHECK(
        absl::StartsWith(AskLoopback(door->port(), HttpRequest(method, "/good")), "HTTP/1.1 405 "));
  }
  // A body is not read.
  const auto with_body = [&](absl::string_view method) {
    return AskLoopback(door->port(), absl::StrCat(method, " /good HTTP/1.1\r\nHost: x\r\n",
                                                  "Content-Length: 4\r\n\r\nbody"));
  };
  CHECK(absl::StartsWith(with_body("GET"), "HTTP/1.1 400 "));
  CHECK(absl::StartsWith(with_body("POST"), "HTTP/1.1 405 "));
  CHECK(absl::StartsWith(AskLoopback(door->port(), HttpRequest("GET", "/good")), "HTTP/1.1 200 "));
}

TEST_CASE("a request whose end others may see elsewhere is refused, and is its connection's last") {
  const auto door = Open();
  const std::string next = HttpRequest("GET", "/good");
  for (const char* head : {
           "Content-Length: 0\r\nContent-Length: 55\r\n",
           "Content-Length: 55\r\nContent-Length: 0\r\n",
           "Content-Length: 0\r\ncontent-length: 0\r\n",
           "Content-Length: 00\r\n",
           "Content-Length: +0\r\n",
           "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
           "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
           "Transfer-Encoding: identity\r\n",
           "Transfer-Encoding : chunked\r\n",
           "Content-Length : 55\r\n",
       }) {
    const std::string answer = AskLoopback(
        door->port(), absl::StrCat("GET /good HTTP/1.1\r\nHost: x\r\n", head, "\r\n", next));
    INFO(head << answer);
    CHECK(absl::StartsWith(answer, "HTTP/1.1 400 "));
    CHECK_FALSE(absl::StrContains(answer, "HTTP/1.1 200 "));
  }
  const std::string both =
      AskLoopback(door->port(),
                  absl::StrCat("GET /good HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", next));
  CHECK(absl::StartsWith(both, "HTTP/1.1 200 "));
  CHECK(both.rfind("HTTP/1.1 200 ") > 0);
}

TEST_CASE("a request that comes byte by byte is cut, and one that follows others is not") {
  HttpCounts counts;
  const auto door =
      HttpDoor::Start("127.0.0.1:0", {{"/good", [] { return HttpAnswer(); }}}, &counts).value();
  std::vector<int> slow;
  for (int i = 0; i < 64; ++i) slow.push_back(test::ConnectToLoopback(door->port()));
  const std::string head = absl::StrCat("GET /good HTTP/1.1\r\nA: ", std::string(100, 'a'));
  const absl::Time begin = absl::Now();
  absl::SleepFor(absl::Milliseconds(100));
  // A byte of each request twice a second: none is idle.
  for (const char byte : head) {
    for (const int fd : slow) (void)!send(fd, &byte, 1, MSG_NOSIGNAL);
    absl::SleepFor(absl::Milliseconds(500));
    if (counts.open == 0 || absl::Now() - begin > HttpDoor::kRequestMax + absl::Seconds(4)) break;
  }
  CHECK(counts.open == 0);
  CHECK(absl::Now() - begin >= HttpDoor::kRequestMax);
  for (const int fd : slow) close(fd);
  // One that asks on and on lives longer.
  const int keeps = test::ConnectToLoopback(door->port());
  const std::string ask = "GET /good HTTP/1.1\r\nHost: x\r\n\r\n";
  for (int i = 0; i < 7; ++i, absl::SleepFor(absl::Seconds(2))) {
    char part[4096];
    REQUIRE(send(keeps, ask.data(), ask.size(), MSG_NOSIGNAL) == std::ssize(ask));
    REQUIRE(read(keeps, part, sizeof part) > 0);
  }
  close(keeps);
}

TEST_CASE("connections that never ask, or ask nonsense, keep nobody out") {
  const auto door = Open();
  std::vector<int> silent;
  for (int i = 0; i < 20; ++i) {
    silent.push_back(test::ConnectToLoopback(door->port()));
    if (i % 2 == 0) REQUIRE(write(silent.back(), "GET /", 5) == 5);
  }
  CHECK(test::ValueOf(test::Scrape(door->port()), "up") == 1);
  for (const int fd : silent) close(fd);
  const uint64_t seed = 11;
  Rng rng(seed);
  CAPTURE(seed);
  for (int round = 0; round < 300; ++round) {
    std::string bytes(rng.Below(200), '\0');
    for (char& c : bytes) c = static_cast<char>(rng.Next());
    if (round % 3 == 0) bytes = HttpRequest("GET", absl::StrCat("/", bytes));
    if (round % 3 == 1) bytes = "GET /good HTTP/1.1\r\n" + bytes;
    const int fd = test::ConnectToLoopback(door->port());
    (void)!write(fd, bytes.data(), bytes.size());
    close(fd);
  }
  const std::string large(64 << 10, 'a');  // more than a head may be
  const int fd = test::ConnectToLoopback(door->port());
  (void)!send(fd, large.data(), large.size(), MSG_NOSIGNAL);
  close(fd);
  // Those that have closed may count for a moment yet.
  bool served = false;
  for (int i = 0; i < 500 && !served; ++i, absl::SleepFor(absl::Milliseconds(20))) {
    served = absl::StrContains(test::Scrape(door->port()), "\nup 1\n");
  }
  CHECK(served);
}

TEST_CASE("connections of one address beyond its share are closed at once, and counted") {
  HttpCounts counts;
  const auto door =
      HttpDoor::Start("127.0.0.1:0", {{"/good", [] { return HttpAnswer(); }}}, &counts).value();
  const auto is = [](auto& count, auto expected) {
    for (int i = 0; i < 200 && count != expected; ++i) absl::SleepFor(absl::Milliseconds(10));
    return count == expected;
  };
  std::vector<int> silent;
  for (int i = 0; i < 64; ++i) silent.push_back(test::ConnectToLoopback(door->port()));
  CHECK(is(counts.open, 64));
  CHECK(counts.refused == 0);
  for (int i = 0; i < 3; ++i) {
    const int fd = test::ConnectToLoopback(door->port());
    char byte = 0;
    CHECK(read(fd, &byte, 1) <= 0);
    close(fd);
  }
  CHECK(is(counts.refused, 3u));
  CHECK(counts.open == 64);
  for (const int fd : silent) close(fd);
  CHECK(is(counts.open, 0));
  CHECK(absl::StartsWith(AskLoopback(door->port(), HttpRequest("GET", "/good")), "HTTP/1.1 200 "));
  CHECK(counts.refused == 3);
}

TEST_CASE("an address that pages cannot be served on is named") {
  for (const char* listen : {"", "8080", "nowhere:x", "127.0.0.1:99999", "127.0.0.1:0,0.0.0.0:0"}) {
    const auto door = HttpDoor::Start(listen, {});
    CAPTURE(listen);
    CHECK(absl::IsInvalidArgument(door.status()));
    CHECK(absl::StrContains(door.status().message(), absl::StrCat("\"", listen, "\"")));
  }
  const auto first = Open();
  const std::string taken = absl::StrCat("127.0.0.1:", first->port());
  const absl::Status refused = HttpDoor::Start(taken, {}).status();
  CHECK(absl::IsUnavailable(refused));
  CHECK(absl::StrContains(refused.message(), taken));
}

}  // namespace
}  // namespace annulus
