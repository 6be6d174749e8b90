// What the local network keeps of exchanges that some members never open, and exchanges without any
// member.
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "comm/local/local_exchange.h"
#include "comm/local/local_network.h"
#include "comm/no_exchange.h"
#include "tests/catch.h"

namespace annulus {
namespace {

// A worker without a part in a plan never opens its exchange: in a process that lives long there
// are ever more of them.
TEST_CASE("exchanges that one member never opens are forgotten, and later ones cost no more") {
  LocalNetwork network;
  const std::unique_ptr<Fabric> fabric = network.MakeFabric("a").value();
  const std::unique_ptr<Fabric> silent = network.MakeFabric("b").value();
  const std::vector<std::string> addresses = {fabric->messenger().address(),
                                              silent->messenger().address()};
  uint64_t channel = 0;
  const auto open = [&](int count) {
    const absl::Time begin = absl::Now();
    for (int i = 0; i < count; ++i) REQUIRE(fabric->OpenExchange(++channel, 0, addresses).ok());
    return absl::Now() - begin;
  };
  open(200);
  const absl::Duration early = open(1000);
  open(60'000);
  CHECK(open(1000) < 20 * early);  // 300 times as much where all are kept and looked at
}

TEST_CASE("who opens an exchange late hears that another one has given it up") {
  LocalNetwork network;
  const std::unique_ptr<Fabric> a = network.MakeFabric("a").value();
  const std::unique_ptr<Fabric> b = network.MakeFabric("b").value();
  const std::vector<std::string> addresses = {a->messenger().address(), b->messenger().address()};
  (*a->OpenExchange(7, 0, addresses))->Abort(absl::InternalError("broken"));  // and closed
  for (uint64_t other = 100; other < 1100; ++other) {
    REQUIRE(a->OpenExchange(other, 0, addresses).ok());
  }
  const std::unique_ptr<Exchange> late = b->OpenExchange(7, 1, addresses).value();
  char byte = 0;
  const auto ticket = late->Post({}, {{0, &byte, 1}});
  const absl::Status status =
      ticket.ok() ? late->Wait(*ticket, absl::Now() + absl::Seconds(5)) : ticket.status();
  CHECK(absl::IsUnavailable(status));
}

TEST_CASE("a group takes what its ranks move, and not what all pairs of them could") {
  constexpr int kWorld = 50'000;
  std::vector<std::unique_ptr<Exchange>> ranks = MakeLocalExchanges(kWorld);
  char from = 'x', to = 0;
  const auto sent = ranks.front()->Post({{kWorld - 1, &from, 1}}, {});
  const auto received = ranks.back()->Post({}, {{0, &to, 1}});
  REQUIRE(sent.ok());
  REQUIRE(received.ok());
  CHECK(ranks.front()->Wait(*sent, absl::InfiniteFuture()).ok());
  CHECK(ranks.back()->Wait(*received, absl::InfiniteFuture()).ok());
  CHECK(to == 'x');
}

TEST_CASE("an exchange in which nothing moves refuses what should") {
  NoExchange exchange(1, 3);
  CHECK(exchange.rank() == 1);
  CHECK(exchange.world() == 3);
  const auto nothing = exchange.Post({}, {});
  REQUIRE(nothing.ok());
  CHECK(exchange.Wait(*nothing, absl::Now()).ok());
  char byte = 0;
  CHECK(absl::IsInvalidArgument(exchange.Post({{0, &byte, 1}}, {}).status()));
  CHECK(absl::IsInvalidArgument(exchange.Post({}, {{2, &byte, 1}}).status()));
  CHECK(exchange.counters().bytes_sent == 0);
}

}  // namespace
}  // namespace annulus
