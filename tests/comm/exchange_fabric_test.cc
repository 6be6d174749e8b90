// What of the contract of Exchange only those of a Fabric can do: members with addresses, and ranks
// that go while the others stay. MPI has neither: where one of its ranks is killed, the launcher
// ends them all.
#include "absl/time/clock.h"
#include "tests/comm/killed_in_ring.h"
#include "tests/comm/test_group.h"

namespace annulus {
namespace {

using Bytes = std::vector<uint8_t>;

std::string Kind() {
  return GENERATE(from_range(ExchangeKinds(/*with_channels=*/true)));
}

absl::Time Soon() {
  return absl::Now() + absl::Seconds(10);
}

TEST_CASE("an exchange is opened at one's own address only", "[exchange]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  TestGroup group(kind, 2);
  CHECK(!group.nodes[0]->fabric->OpenExchange(1002, 1, group.addresses).ok());
  CHECK(!group.nodes[0]->fabric->OpenExchange(1002, 2, group.addresses).ok());
  CHECK(group.nodes[0]->fabric->OpenExchange(1002, 0, group.addresses).ok());
}

TEST_CASE("a rank that is gone fails the tickets that need it, and later posts", "[exchange]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  TestGroup group(kind, 3);
  // The connections exist once something has moved.
  const char ping = 1;
  char pong[2] = {0, 0};
  const auto all = group.exchanges[2]->Post({{0, &ping, 1}, {1, &ping, 1}}, {});
  const auto to_0 = group.exchanges[0]->Post({}, {{2, &pong[0], 1}});
  const auto to_1 = group.exchanges[1]->Post({}, {{2, &pong[1], 1}});
  REQUIRE((all.ok() && to_0.ok() && to_1.ok()));
  REQUIRE(group.exchanges[0]->Wait(*to_0, Soon()).ok());
  REQUIRE(group.exchanges[1]->Wait(*to_1, Soon()).ok());
  REQUIRE(group.exchanges[2]->Wait(*all, Soon()).ok());

  Bytes in(100);
  const Bytes out(100, 9);
  const auto needs_2 = group.exchanges[0]->Post({}, {{2, in.data(), in.size()}});
  const auto needs_0 = group.exchanges[1]->Post({}, {{0, in.data(), in.size()}});
  const auto needs_1 = group.exchanges[0]->Post({{1, out.data(), out.size()}}, {});
  REQUIRE((needs_2.ok() && needs_0.ok() && needs_1.ok()));
  group.Kill(2);
  const absl::Time start = absl::Now();
  const absl::Status status = group.exchanges[0]->Wait(*needs_2, Soon());
  CAPTURE(status.ToString());
  CHECK(absl::IsUnavailable(status));
  CHECK(status.message().find("rank 2 is down") != absl::string_view::npos);
  CHECK(absl::Now() - start < absl::Milliseconds(500));
  CHECK(absl::IsUnavailable(group.exchanges[0]->Post({}, {}).status()));
  // What does not need it goes on.
  CHECK(group.exchanges[0]->Wait(*needs_1, Soon()).ok());
  CHECK(group.exchanges[1]->Wait(*needs_0, Soon()).ok());
  CHECK(in == out);
}

TEST_CASE("a rank killed at any step of a ring ends it for the others, by an error", "[exchange]") {
  const std::string kind = Kind();
  const int world = GENERATE(3, 4, 5, 8);
  for (int step = 1; step < world; ++step) {
    const KilledInRing ring = {step, /*posts=*/step % 2 == 0, /*victim=*/step % world, 300'000};
    CAPTURE(kind, world, step);
    std::vector<std::vector<std::byte>> memory(world, std::vector<std::byte>(2 * ring.size_bytes));
    TestGroup group(kind, world);
    group.Run([&](Exchange& exchange) {
      const int rank = exchange.rank();
      return RunKilledInRing(ring, exchange, memory[rank].data(), [&] { group.Kill(rank); });
    });
  }
}

// UCX answers who connects by itself. The answer waits where the other side's queue is full, and
// UCX 1.13 ends the process that destroys a worker with such an answer in it.
TEST_CASE("a fabric ends while one that connects to it takes nothing", "[exchange]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  TestFabrics fabrics(kind);
  TestNode busy(fabrics);
  TestNode sender(fabrics);
  auto ending = std::make_unique<TestNode>(fabrics);
  const auto to_busy = sender.messenger().Connect(busy.messenger().address());
  REQUIRE(to_busy.ok());
  REQUIRE(sender.messenger().Send(*to_busy, {1, "hello", {}}).ok());
  REQUIRE(fabrics.PollUntil({&busy.messenger(), &sender.messenger()},
                            [&] { return !busy.messages.empty(); }));
  // It asks to be connected, and polls no more.
  REQUIRE(busy.messenger().Connect(ending->messenger().address()).ok());
  for (int i = 0; i < 10; ++i) busy.messenger().Poll(absl::Microseconds(200));
  for (int i = 0; i < 1000; ++i) {
    REQUIRE(sender.messenger().Send(*to_busy, {1, "more", {}}).ok());
  }
  for (int i = 0; i < 100; ++i) sender.messenger().Poll(absl::Microseconds(200));
  for (int i = 0; i < 100; ++i) ending->messenger().Poll(absl::Microseconds(200));
  ending.reset();
  CHECK(fabrics.PollUntil({&busy.messenger(), &sender.messenger()},
                          [&] { return busy.messages.size() == 1001; }));
}

}  // namespace
}  // namespace annulus
