// The simulated network: one thread, one seed, one trace; and its faults.
#include <map>

#include "absl/strings/str_cat.h"
#include "base/rng.h"
#include "comm/local/local_network.h"
#include "tests/catch.h"

namespace annulus {
namespace {

// Nodes that talk at random while links drop and nodes crash, pause and are cut off; returns what
// each saw, and checks order and silence after a peer is down.
std::string Trace(uint64_t seed) {
  LocalNetworkOptions options;
  options.simulation.emplace();
  options.simulation->seed = seed;
  options.simulation->drop = 0.01;
  LocalNetwork network(options);
  Rng rng(seed);
  const int nodes = 5;
  std::vector<std::unique_ptr<Fabric>> fabrics;
  std::vector<std::vector<PeerId>> peers(nodes);
  std::map<std::pair<int, PeerId>, uint32_t> next;
  std::map<std::pair<int, PeerId>, bool> down;
  std::string trace;
  const absl::Time start = network.clock().Now();
  for (int node = 0; node < nodes; ++node) {
    fabrics.push_back(*network.MakeFabric(absl::StrCat(node)));
    fabrics[node]->messenger().SetDoor(PeerDoor::kOpen);
    fabrics[node]->messenger().SetHandlers(
        {[&, node](PeerId from, Message message) {
           REQUIRE(!down[{node, from}]);
           REQUIRE(message.type == next[{node, from}]++);
           absl::StrAppend(&trace, absl::ToInt64Nanoseconds(network.clock().Now() - start), " ",
                           node, "<", from, " ", message.type, "\n");
         },
         [&, node](PeerId peer, absl::Status why) {
           REQUIRE(!down[{node, peer}]);
           down[{node, peer}] = true;
           absl::StrAppend(&trace, node, " down ", peer, " ", why.message(), "\n");
         }});
  }
  std::map<std::pair<int, PeerId>, uint32_t> sent;
  std::vector<bool> crashed(nodes, false);
  for (int step = 0; step < 400; ++step) {
    const int node = static_cast<int>(rng.Below(nodes));
    const std::string own = absl::StrCat("local:", node);
    const std::string other = absl::StrCat("local:", rng.Below(nodes));
    Messenger& messenger = fabrics[node]->messenger();
    const uint64_t action = rng.Below(100);
    if (crashed[node]) continue;
    if (action < 10) {
      peers[node].push_back(*messenger.Connect(other));
    } else if (action < 80) {
      for (const PeerId peer : peers[node]) {
        if (messenger.Send(peer, {sent[{node, peer}], "", {}}).ok()) ++sent[{node, peer}];
      }
    } else if (action < 84) {
      network.Clog(own, other);
    } else if (action < 90) {
      for (int a = 0; a < nodes; ++a) {
        for (int b = 0; b < nodes; ++b) {
          network.Unclog(absl::StrCat("local:", a), absl::StrCat("local:", b));
        }
      }
    } else if (action < 93) {
      network.Pause(own);
    } else if (action < 99) {
      network.Resume(own);
    } else if (node != 0) {
      network.Crash(own);
      crashed[node] = true;
    }
    network.RunUntil(network.clock().Now() + absl::Microseconds(rng.Below(300)));
  }
  while (network.Step()) {
  }
  return trace;
}

TEST_CASE("one seed gives one trace, another gives another", "[simulation]") {
  std::string last;
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    CAPTURE(seed);
    const std::string trace = Trace(seed);
    REQUIRE(trace == Trace(seed));
    REQUIRE(trace != last);
    REQUIRE(trace.size() > 500);
    last = trace;
  }
}

struct Observer {
  Observer(LocalNetwork& network, absl::string_view name) : fabric(*network.MakeFabric(name)) {
    messenger().SetDoor(PeerDoor::kOpen);
    messenger().SetHandlers({[this](PeerId from, Message message) {
                               last_from = from;
                               types.push_back(message.type);
                             },
                             [this](PeerId, absl::Status) { ++downs; }});
  }
  Messenger& messenger() { return fabric->messenger(); }

  std::unique_ptr<Fabric> fabric;
  std::vector<uint32_t> types;
  PeerId last_from = 0;
  int downs = 0;
};

LocalNetworkOptions Simulated() {
  LocalNetworkOptions options;
  options.simulation.emplace();
  return options;
}

TEST_CASE("timers and messages share one clock", "[simulation]") {
  LocalNetwork network(Simulated());
  Observer a(network, "a");
  Observer b(network, "b");
  const absl::Time start = network.clock().Now();
  const PeerId peer = *a.messenger().Connect("local:b");
  std::vector<int> order;
  network.At(start + absl::Seconds(2), [&] { order.push_back(2); });
  network.At(start + absl::Seconds(1), [&] {
    order.push_back(1);
    REQUIRE(a.messenger().Send(peer, {9, "", {}}).ok());
  });
  REQUIRE(network.Step());
  CHECK(network.clock().Now() == start + absl::Seconds(1));
  REQUIRE(network.Step());
  CHECK(b.types == std::vector<uint32_t>{9});
  CHECK(network.clock().Now() <= start + absl::Seconds(1) + absl::Microseconds(500));
  network.RunUntil(start + absl::Seconds(5));
  CHECK(order == std::vector<int>{1, 2});
  CHECK(network.clock().Now() == start + absl::Seconds(5));
  CHECK(!network.Step());
}

TEST_CASE("a clogged way is silent, one way, and loses nothing", "[simulation]") {
  LocalNetwork network(Simulated());
  Observer a(network, "a");
  Observer b(network, "b");
  const PeerId peer = *a.messenger().Connect("local:b");
  REQUIRE(a.messenger().Send(peer, {0, "", {}}).ok());
  while (network.Step()) {
  }
  network.Clog("local:a", "local:b");
  for (uint32_t i = 1; i <= 3; ++i) REQUIRE(a.messenger().Send(peer, {i, "", {}}).ok());
  REQUIRE(b.messenger().Send(b.last_from, {7, "", {}}).ok());
  network.RunUntil(network.clock().Now() + absl::Seconds(60));
  CHECK(b.types == std::vector<uint32_t>{0});
  CHECK(a.types == std::vector<uint32_t>{7});
  CHECK(a.downs + b.downs == 0);
  network.Unclog("local:a", "local:b");
  while (network.Step()) {
  }
  CHECK(b.types == std::vector<uint32_t>{0, 1, 2, 3});
}

TEST_CASE("a paused node hears later, a crashed one never, and its name is free", "[simulation]") {
  LocalNetwork network(Simulated());
  Observer a(network, "a");
  auto b = std::make_unique<Observer>(network, "b");
  CHECK(!network.MakeFabric("b").ok());
  const PeerId peer = *a.messenger().Connect("local:b");
  network.Pause("local:b");
  REQUIRE(a.messenger().Send(peer, {1, "", {}}).ok());
  network.RunUntil(network.clock().Now() + absl::Seconds(10));
  CHECK(b->types.empty());
  network.Resume("local:b");
  REQUIRE(network.Step());
  CHECK(b->types.size() == 1);
  network.Crash("local:b");
  CHECK(!b->messenger().Send(b->last_from, {1, "", {}}).ok());
  CHECK(a.downs == 0);
  REQUIRE(network.Step());
  CHECK(a.downs == 1);
  Observer again(network, "b");
  REQUIRE(a.messenger().Send(*a.messenger().Connect("local:b"), {5, "", {}}).ok());
  while (network.Step()) {
  }
  CHECK(again.types == std::vector<uint32_t>{5});
  CHECK(b->types.size() == 1);
}

}  // namespace
}  // namespace annulus
