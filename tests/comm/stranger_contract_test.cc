// What a messenger lets peers do that it has not come to trust, for every implementation.
#include <algorithm>

#include "tests/comm/test_fabrics.h"

namespace annulus {
namespace {

std::string Kind() {
  return GENERATE(std::string("local"), "simulated", "ucx tcp", "ucx shm,tcp");
}

Message Text(uint32_t type, std::string body) {
  return {type, std::move(body), {}};
}

// A door, and somebody before it.
struct Pair {
  explicit Pair(const std::string& kind, PeerDoor door = PeerDoor::kStrangers)
      : fabrics(kind), inside(fabrics), outside(fabrics) {
    inside.messenger().SetDoor(door);
  }

  bool PollUntil(const std::function<bool()>& done, absl::Duration limit = absl::Seconds(20)) {
    return fabrics.PollUntil({&inside.messenger(), &outside.messenger()}, done, limit);
  }
  bool Send(PeerId peer, uint32_t type, size_t payload_bytes = 0) {
    return outside.messenger().Send(peer, {type, "", Buffer(payload_bytes)}).ok();
  }
  // Lets what is on its way arrive.
  void Settle() {
    PollUntil([] { return false; }, absl::Milliseconds(300));
  }

  TestFabrics fabrics;
  TestNode inside;
  TestNode outside;
};

TEST_CASE("a stranger may say one thing, and more once it is trusted", "[messenger]") {
  const std::string kind = Kind();
  const bool trusted = GENERATE(false, true);
  CAPTURE(kind, trusted);
  Pair pair(kind);
  pair.inside.on_message = [&](PeerId from) {
    if (trusted) pair.inside.messenger().Trust(from);
  };
  const PeerId peer = *pair.outside.messenger().Connect(pair.inside.messenger().address());
  REQUIRE(pair.Send(peer, 1, kStrangerBytesMax / 2));
  REQUIRE(pair.PollUntil([&] { return pair.inside.messages.size() == 1; }));
  REQUIRE(pair.Send(peer, 2, size_t{1} << 20));
  if (trusted) {
    REQUIRE(pair.PollUntil([&] { return pair.inside.messages.size() == 2; }));
    CHECK(pair.inside.downs.empty());
    return;
  }
  REQUIRE(
      pair.PollUntil([&] { return !pair.inside.downs.empty() && !pair.outside.downs.empty(); }));
  CHECK(pair.inside.messages.size() == 1);
  CHECK(pair.inside.downs[0].first == pair.inside.messages[0].first);
  CHECK(pair.outside.downs[0].first == peer);
}

TEST_CASE("a stranger's message is short", "[messenger]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  Pair pair(kind);
  const PeerId peer = *pair.outside.messenger().Connect(pair.inside.messenger().address());
  REQUIRE(pair.Send(peer, 1, kStrangerBytesMax + 1));
  REQUIRE(pair.PollUntil([&] { return !pair.outside.downs.empty(); }));
  CHECK(pair.inside.messages.empty());
  CHECK(pair.inside.downs.empty());
  // Others are not concerned.
  const PeerId other = *pair.outside.messenger().Connect(pair.inside.messenger().address());
  REQUIRE(pair.Send(other, 2, kStrangerBytesMax));
  REQUIRE(pair.PollUntil([&] { return pair.inside.messages.size() == 1; }));
}

TEST_CASE("a door with keys hears those who name one that was admitted", "[messenger]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  Pair pair(kind, PeerDoor::kKeys);
  const std::string address = pair.inside.messenger().address();
  const LinkKey key = LinkKey::Random();
  LinkKey wrong = key;
  wrong.bytes[LinkKey::kBytes - 1] ^= 1;
  pair.inside.messenger().AdmitKey(key);
  uint32_t type = 0;
  const auto knock = [&](const LinkKey& with) {
    REQUIRE(pair.Send(*pair.outside.messenger().Connect(address, with), ++type));
  };
  knock(wrong);
  knock(LinkKey());
  REQUIRE(pair.Send(*pair.outside.messenger().Connect(address), ++type));
  pair.Settle();
  CHECK(pair.inside.messages.empty());
  knock(key);
  knock(key);  // any number of connections
  REQUIRE(pair.PollUntil([&] { return pair.inside.messages.size() == 2; }));
  const PeerId from = pair.inside.messages[0].first;
  CHECK(pair.inside.messages[0].second.type >= 4);
  REQUIRE(pair.inside.messenger().KeyOf(from).ok());
  CHECK(*pair.inside.messenger().KeyOf(from) == key);
  CHECK(absl::IsNotFound(pair.inside.messenger().KeyOf(99).status()));
  pair.inside.messenger().DismissKey(key);
  knock(key);
  pair.Settle();
  CHECK(pair.inside.messages.size() == 2);
  // Those who are in may stay.
  pair.inside.messenger().Trust(from);
  REQUIRE(pair.inside.messenger().Send(from, Text(9, "")).ok());
  REQUIRE(pair.PollUntil([&] { return pair.outside.messages.size() == 1; }));
}

}  // namespace
}  // namespace annulus
