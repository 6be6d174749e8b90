// Who is let in as a worker, and what data address it may name.
#include "runtime/server/join.h"

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/server/server.h"
#include "tests/catch.h"
#include "tests/rpc/fake_service.h"

namespace annulus {
namespace {

absl::Status Check(const std::string& data_address, const std::string& caller,
                   const std::vector<std::string>& hosts = {}) {
  return CheckDataAddress(data_address, caller, {"w-1.workers.svc"}, hosts);
}

TEST_CASE("A worker's data address is where it joins from, or what it may name") {
  CHECK(Check("", "10.0.0.1").ok());  // none
  CHECK(Check("10.0.0.1:7071", "10.0.0.1").ok());
  CHECK(Check("tls://10.0.0.1:7071", "10.0.0.1").ok());
  CHECK(Check("[2001:db8:0::1]:7071", "2001:db8::1").ok());
  CHECK(Check("[::ffff:10.0.0.1]:7071", "10.0.0.1").ok());
  CHECK(Check("localhost:7071", "127.0.0.1").ok());
  CHECK(Check("127.0.0.2:7071", "::1").ok());
  CHECK(Check("tls://w-1.workers.svc:7071", "10.0.0.1").ok());  // of its certificate
  CHECK(Check("w-2.workers.svc:7071", "10.0.0.1", {"a", "*.workers.svc"}).ok());
  CHECK(Check("10.1.7.9:7071", "10.0.0.1", {"10.1.*"}).ok());

  for (const char* address :
       {"10.0.0.2:7071", "localhost:7071", "127.0.0.1:1", "w-2.workers.svc:7071", "0.0.0.0:1",
        "tls://10.0.0.11:7071", "tls://tls://10.0.0.1:7071", "https://10.0.0.1:7071", "10.0.0.1",
        "10.0.0.1:70710", "10.0.0.1,10.0.0.2:1", "[2001:db8::1]:7071"}) {
    const absl::Status refused = Check(address, "10.0.0.1");
    INFO(address << ": " << refused);
    CHECK(absl::IsInvalidArgument(refused));
    CHECK(absl::StartsWith(refused.message(), "data_address: "));
  }
  CHECK(Check("10.0.0.2:7071", "10.0.0.1").message() ==
        "data_address: \"10.0.0.2:7071\"; expected the host that the worker joins from, 10.0.0.1, "
        "one that its certificate names, or one of the coordinator's --data-hosts");
}

TEST_CASE("A worker is told where its coordinator is, and asks again by the key it got") {
  FakeService service;
  std::vector<std::string> asked;
  LinkKey key = LinkKey::Random();
  RpcServerOptions options;
  options.service = &service;
  options.join = JoinOptions{[&](const std::string& before, const std::string& data_address) {
    asked.push_back(before + "|" + data_address);
    return Admittance{"fabric", key};
  }};
  const auto server = RpcServer::Start(options).value();
  const std::string endpoint = absl::StrCat("127.0.0.1:", server->port());
  const auto join = JoinClient::Make(endpoint, {}).value();
  const auto in = join->Join("", absl::Now() + absl::Seconds(10));
  REQUIRE(in.ok());
  CHECK(in->address == "fabric");
  CHECK(in->key == key);
  REQUIRE(join->Join("127.0.0.1:1", absl::Now() + absl::Seconds(10)).ok());
  CHECK(asked == std::vector<std::string>{"|", std::string(key.view()) + "|127.0.0.1:1"});
  const absl::Status elsewhere =
      join->Join("192.0.2.1:1", absl::Now() + absl::Seconds(10)).status();
  CHECK(absl::IsInvalidArgument(elsewhere));
  CHECK(absl::StrContains(elsewhere.message(), endpoint));
  CHECK(asked.size() == 2);
}

TEST_CASE("A worker waits for a coordinator that is not there") {
  const auto join = JoinClient::Make("127.0.0.1:1", {}).value();
  const absl::Status none = join->Join("", absl::Now() + absl::Milliseconds(100)).status();
  INFO(none);
  CHECK((absl::IsDeadlineExceeded(none) || absl::IsUnavailable(none)));
}

}  // namespace
}  // namespace annulus
