// How long, and how many, strangers may be before a door of UCX's.
#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>
#include <vector>

#include "tests/comm/raw_ucx_client.h"
#include "tests/comm/test_fabrics.h"

namespace annulus {
namespace {

struct FrontDoor {
  explicit FrontDoor(const PeerLimits& limits) : outside(fabrics) {
    UcxOptions options;
    options.peers = limits;
    auto made = UcxFabric::Create(options);
    REQUIRE(made.ok());
    inside = *std::move(made);
    inside->messenger().SetHandlers({[this](PeerId from, Message message) {
                                       heard.push_back(from);
                                       if (message.body == "trust me") {
                                         inside->messenger().Trust(from);
                                       }
                                     },
                                     [this](PeerId, absl::Status) { ++downs; }});
  }

  PeerId Knock() { return *outside.messenger().Connect(inside->messenger().address()); }
  bool PollUntil(const std::function<bool()>& done, absl::Duration limit = absl::Seconds(20)) {
    return fabrics.PollUntil({&inside->messenger(), &outside.messenger()}, done, limit);
  }
  bool IsDown(PeerId peer) const {
    return std::any_of(outside.downs.begin(), outside.downs.end(),
                       [&](const auto& down) { return down.first == peer; });
  }

  TestFabrics fabrics{"ucx tcp"};
  std::unique_ptr<Fabric> inside;
  std::vector<PeerId> heard;
  int downs = 0;
  TestNode outside;
};

PeerLimits Short() {
  PeerLimits limits;
  limits.stranger_time = absl::Milliseconds(200);
  limits.half_message_time = absl::Milliseconds(400);
  return limits;
}

TEST_CASE("a stranger stays for a short time, and who is trusted for good", "[messenger]") {
  FrontDoor door(Short());
  const PeerId silent = door.Knock();
  const PeerId speaks = door.Knock();
  const PeerId trusted = door.Knock();
  REQUIRE(door.outside.messenger().Send(speaks, {1, "hello", {}}).ok());
  REQUIRE(door.outside.messenger().Send(trusted, {1, "trust me", {}}).ok());
  CHECK(door.PollUntil([&] { return door.IsDown(silent) && door.IsDown(speaks); }));
  CHECK(door.heard.size() == 2);
  CHECK(door.downs == 1);  // of the one that it has heard
  door.PollUntil([] { return false; }, absl::Milliseconds(600));
  CHECK(!door.IsDown(trusted));
  REQUIRE(door.outside.messenger().Send(trusted, {1, "still here", {}}).ok());
  CHECK(door.PollUntil([&] { return door.heard.size() == 3; }));
}

TEST_CASE("of too many strangers the oldest goes", "[messenger]") {
  PeerLimits limits;
  limits.strangers_max = 2;
  FrontDoor door(limits);
  std::vector<PeerId> peers;
  for (size_t i = 1; i <= 3; ++i) {
    peers.push_back(door.Knock());
    REQUIRE(door.outside.messenger().Send(peers.back(), {1, "hello", {}}).ok());
    REQUIRE(door.PollUntil([&] { return door.heard.size() == i; }));
  }
  CHECK(door.PollUntil([&] { return door.IsDown(peers[0]); }));
  CHECK((!door.IsDown(peers[1]) && !door.IsDown(peers[2])));
}

TEST_CASE("a peer that stops in the midst of a message is dropped", "[messenger]") {
  FrontDoor door(Short());
  std::optional<RawUcxClient> client;
  // In a thread of its own, since UCX wants both sides to move.
  const auto act = [&](const std::function<void()>& what) {
    std::atomic<bool> done = false;
    std::thread thread([&] {
      what();
      done = true;
    });
    CHECK(door.PollUntil([&] { return done.load(); }));
    thread.join();
  };
  act([&] { client.emplace(door.inside->messenger().address()); });
  MessengerHeader header = {};
  header.key = LinkKey::Random();
  header.kind = MessengerHeader::kHello;
  act([&] { client->SendEager(UcxAm::kMessenger, UcxHeader(header, client->address())); });
  header.kind = MessengerHeader::kMessage;
  header.sequence = 1;
  act([&] { client->SendEager(UcxAm::kMessenger, UcxHeader(header, "trust me")); });
  REQUIRE(door.PollUntil([&] { return door.heard.size() == 1; }));
  door.PollUntil([] { return false; }, absl::Milliseconds(600));
  CHECK(door.downs == 0);
  header.sequence = 2;
  header.payload_bytes = kUcxChunkBytes + 10;
  header.offset = kUcxChunkBytes;
  act([&] { client->SendEager(UcxAm::kMessenger, UcxHeader(header), "the second"); });
  CHECK(door.PollUntil([&] { return door.downs == 1; }));
  CHECK(door.heard.size() == 1);
  act([&] { client.reset(); });
}

}  // namespace
}  // namespace annulus
