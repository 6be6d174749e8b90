// The contract of Messenger, for every implementation.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "absl/time/clock.h"
#include "base/rng.h"
#include "tests/comm/test_fabrics.h"

namespace annulus {
namespace {

std::string Kind() {
  return GENERATE(std::string("local"), "simulated", "ucx tcp", "ucx shm,tcp");
}

Message Text(uint32_t type, std::string body, std::string payload = "") {
  return {type, std::move(body), Buffer::Copy(payload.data(), payload.size())};
}

// Bytes that tell their message and place.
Buffer Pattern(uint64_t seed, size_t size_bytes) {
  Buffer buffer(size_bytes);
  Rng rng(seed);
  size_t i = 0;
  for (; i + 8 <= size_bytes; i += 8) {
    const uint64_t word = rng.Next();
    std::memcpy(buffer.data() + i, &word, 8);
  }
  for (; i < size_bytes; ++i) buffer.data()[i] = std::byte(seed + i);
  return buffer;
}

bool Equal(const Buffer& a, const Buffer& b) {
  return a.span() == b.span();
}

TEST_CASE("a message and its answer arrive", "[messenger]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  TestFabrics fabrics(kind);
  TestNode a(fabrics);
  TestNode b(fabrics);
  const auto peer = a.messenger().Connect(b.messenger().address());
  REQUIRE(peer.ok());
  REQUIRE(a.messenger().Send(*peer, Text(7, "head", "body")).ok());
  const std::vector<Messenger*> all = {&a.messenger(), &b.messenger()};
  REQUIRE(fabrics.PollUntil(all, [&] { return !b.messages.empty(); }));
  CHECK(b.messages[0].second.type == 7);
  CHECK(b.messages[0].second.body == "head");
  CHECK(Equal(b.messages[0].second.payload, Buffer::Copy("body", 4)));
  const PeerId from = b.messages[0].first;
  CHECK(from > 0);

  REQUIRE(b.messenger().Send(from, Text(8, "answer")).ok());
  REQUIRE(fabrics.PollUntil(all, [&] { return !a.messages.empty(); }));
  CHECK(a.messages[0].first == *peer);
  CHECK(a.messages[0].second.type == 8);
  CHECK(a.messages[0].second.payload.empty());
  const auto sent = a.messenger().counters();
  const auto received = b.messenger().counters();
  CHECK(sent.messages_sent == 1);
  CHECK(sent.bytes_sent == 4);
  CHECK(received.bytes_received == 4);
  CHECK(received.messages_received == 1);
  CHECK(a.downs.empty());
  CHECK(b.downs.empty());
}

TEST_CASE("messages of all sizes arrive whole, once and in order, both ways", "[messenger]") {
  const std::string kind = Kind();
  const uint64_t seed = 20261 + kind.size();
  CAPTURE(kind, seed);
  TestFabrics fabrics(kind);
  TestNode a(fabrics);
  TestNode b(fabrics);
  const auto peer = a.messenger().Connect(b.messenger().address());
  REQUIRE(peer.ok());
  Rng rng(seed);
  const int count = 200;
  size_t next_answer = 0;
  b.on_message = [&](PeerId from) {
    Message copy = b.messages[next_answer++].second;
    REQUIRE(b.messenger().Send(from, std::move(copy)).ok());
  };
  std::vector<size_t> sizes;
  for (int i = 0; i < count; ++i) {
    // Short ones between ones of several pieces: nothing may overtake.
    const size_t size_bytes = i == 100 ? size_t{5} << 20 : rng.Below(i % 3 == 0 ? 700'000 : 9'000);
    sizes.push_back(size_bytes);
    // And so with bodies, some of which are more than a transport sends at once.
    std::string body(rng.Below(i % 7 == 0 ? 300'000 : 6'000), char('a' + i % 26));
    if (i == 50) body.assign(4096, 'x');
    if (i == 51) body.assign(4097, 'x');
    Message message{static_cast<uint32_t>(i), std::move(body), Pattern(seed + i, size_bytes)};
    REQUIRE(a.messenger().Send(*peer, std::move(message)).ok());
  }
  REQUIRE(fabrics.PollUntil({&a.messenger(), &b.messenger()}, [&] {
    return a.messages.size() == static_cast<size_t>(count) || !a.downs.empty();
  }));
  REQUIRE(a.messages.size() == static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    INFO("message " << i);
    REQUIRE(a.messages[i].second.type == static_cast<uint32_t>(i));
    REQUIRE(Equal(a.messages[i].second.payload, Pattern(seed + i, sizes[i])));
    REQUIRE(a.messages[i].second.body == b.messages[i].second.body);
  }
}

TEST_CASE("a long message is heard of before its end, where it comes in parts", "[messenger]") {
  const std::string kind = GENERATE(std::string("ucx tcp"), "ucx shm,tcp");
  CAPTURE(kind);
  TestFabrics fabrics(kind);
  TestNode a(fabrics);
  TestNode b(fabrics);
  std::vector<PeerId> parts;
  size_t parts_at_message = 0;
  b.messenger().SetHandlers({[&](PeerId from, Message message) {
                               b.messages.push_back({from, std::move(message)});
                               parts_at_message = parts.size();
                             },
                             [](PeerId, absl::Status) {},
                             [&](PeerId from) { parts.push_back(from); }});
  const auto peer = a.messenger().Connect(b.messenger().address());
  REQUIRE(peer.ok());
  REQUIRE(a.messenger().Send(*peer, Text(1, "short")).ok());
  const std::vector<Messenger*> all = {&a.messenger(), &b.messenger()};
  REQUIRE(fabrics.PollUntil(all, [&] { return b.messages.size() == 1; }));
  CHECK(parts.empty());
  REQUIRE(a.messenger().Send(*peer, {2, "long", Pattern(1, size_t{32} << 20)}).ok());
  REQUIRE(fabrics.PollUntil(all, [&] { return b.messages.size() == 2; }));
  REQUIRE(parts_at_message > 0);
  CHECK(parts.front() == b.messages[0].first);
  CHECK(Equal(b.messages[1].second.payload, Pattern(1, size_t{32} << 20)));
}

TEST_CASE("an address that is not allowed is refused by name", "[messenger]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  TestFabrics fabrics(kind);
  TestNode a(fabrics);
  TestNode b(fabrics);
  std::string garbled = b.messenger().address();
  garbled[garbled.size() / 2] ^= 1;
  std::vector<std::string> bad = {"", "nonsense", "ucx", "ucx:", "ucx:AAAA", "tcp://1"};
  if (kind[0] == 'u') bad.push_back(garbled);
  for (const std::string& address : bad) {
    CAPTURE(address);
    CHECK(absl::IsInvalidArgument(a.messenger().Connect(address).status()));
  }
  CHECK(absl::IsNotFound(a.messenger().Send(999, Text(1, ""))));
  CHECK(absl::IsNotFound(a.messenger().Send(0, Text(1, ""))));
}

TEST_CASE("a peer that disconnects or closes is down, and never comes back", "[messenger]") {
  const std::string kind = Kind();
  const bool close = GENERATE(false, true);
  CAPTURE(kind, close);
  TestFabrics fabrics(kind);
  TestNode a(fabrics);
  auto b = std::make_unique<TestNode>(fabrics);
  const auto peer = a.messenger().Connect(b->messenger().address());
  REQUIRE(peer.ok());
  REQUIRE(a.messenger().Send(*peer, Text(1, "")).ok());
  REQUIRE(
      fabrics.PollUntil({&a.messenger(), &b->messenger()}, [&] { return !b->messages.empty(); }));
  const PeerId back = b->messages[0].first;
  REQUIRE(b->messenger().Send(back, Text(2, "")).ok());
  REQUIRE(
      fabrics.PollUntil({&a.messenger(), &b->messenger()}, [&] { return !a.messages.empty(); }));
  std::vector<Messenger*> all = {&a.messenger()};
  if (close) {
    b.reset();
  } else {
    b->messenger().Disconnect(back);
    CHECK(absl::IsNotFound(b->messenger().Send(back, Text(3, ""))));
    all.push_back(&b->messenger());
  }
  const absl::Time start = absl::Now();
  REQUIRE(fabrics.PollUntil(
      all, [&] { return !a.downs.empty(); }, absl::Seconds(5)));
  CHECK(absl::Now() - start < absl::Seconds(1));
  CHECK(a.downs[0].first == *peer);
  CHECK(absl::IsUnavailable(a.downs[0].second));
  CHECK(absl::IsNotFound(a.messenger().Send(*peer, Text(3, ""))));
  if (close) return;
  CHECK(b->downs.empty());
  const auto again = a.messenger().Connect(b->messenger().address());
  REQUIRE(again.ok());
  CHECK(*again > *peer);
  REQUIRE(a.messenger().Send(*again, Text(4, "")).ok());
  REQUIRE(fabrics.PollUntil(all, [&] { return b->messages.size() == 2; }));
  CHECK(b->messages[1].first > back);
}

TEST_CASE("an address where nobody is reports the peer down", "[messenger]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  TestFabrics fabrics(kind);
  TestNode a(fabrics);
  std::string address = fabrics.Make()->messenger().address();
  const auto peer = a.messenger().Connect(address);
  REQUIRE(peer.ok());
  CHECK(a.downs.empty());
  REQUIRE(a.messenger().Send(*peer, Text(1, "lost")).ok());
  REQUIRE(fabrics.PollUntil(
      {&a.messenger()}, [&] { return !a.downs.empty(); }, absl::Seconds(5)));
  CHECK(a.downs[0].first == *peer);
}

TEST_CASE("a messenger may connect to itself", "[messenger]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  TestFabrics fabrics(kind);
  TestNode a(fabrics);
  const auto peer = a.messenger().Connect(a.messenger().address());
  REQUIRE(peer.ok());
  REQUIRE(a.messenger().Send(*peer, Text(5, "to me")).ok());
  REQUIRE(fabrics.PollUntil({&a.messenger()}, [&] { return !a.messages.empty(); }));
  const PeerId other_end = a.messages[0].first;
  CHECK(other_end != *peer);
  REQUIRE(a.messenger().Send(other_end, Text(6, "and back")).ok());
  REQUIRE(fabrics.PollUntil({&a.messenger()}, [&] { return a.messages.size() == 2; }));
  CHECK(a.messages[1].first == *peer);
}

TEST_CASE("what is queued to one peer is bounded", "[messenger]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  TestFabrics fabrics(kind, size_t{4} << 20);
  TestNode a(fabrics);
  TestNode b(fabrics);
  const auto peer = a.messenger().Connect(b.messenger().address());
  REQUIRE(peer.ok());
  absl::Status status;
  int accepted = 0;
  while (accepted < 100 && status.ok()) {
    status = a.messenger().Send(*peer, {1, "", Buffer(size_t{1} << 20)});
    if (status.ok()) ++accepted;
  }
  CHECK(absl::IsResourceExhausted(status));
  CHECK(accepted == 4);
  REQUIRE(fabrics.PollUntil({&a.messenger(), &b.messenger()},
                            [&] { return b.messages.size() == static_cast<size_t>(accepted); }));
  CHECK(a.messenger().Send(*peer, Text(1, "")).ok());
}

TEST_CASE("Wake ends a Poll that waits", "[messenger]") {
  const std::string kind = GENERATE(std::string("local"), "ucx tcp", "ucx shm,tcp");
  CAPTURE(kind);
  TestFabrics fabrics(kind);
  TestNode a(fabrics);
  std::thread waker([&] {
    absl::SleepFor(absl::Milliseconds(30));
    a.messenger().Wake();
  });
  const absl::Time start = absl::Now();
  CHECK(a.messenger().Poll(absl::Seconds(10)) == 0);
  CHECK(absl::Now() - start < absl::Seconds(5));
  waker.join();
  a.messenger().Wake();  // before the Poll counts as well
  CHECK(a.messenger().Poll(absl::Seconds(10)) == 0);
  CHECK(absl::Now() - start < absl::Seconds(5));
}

TEST_CASE("one thread sends while another waits, and handlers run in Deliver alone",
          "[messenger]") {
  const std::string kind = GENERATE(std::string("local"), "ucx tcp", "ucx shm,tcp");
  CAPTURE(kind);
  TestFabrics fabrics(kind);
  TestNode a(fabrics);
  TestNode b(fabrics);
  const auto peer = a.messenger().Connect(b.messenger().address());
  REQUIRE(peer.ok());
  const auto wait = [](TestNode& node, std::atomic<bool>& stop) {
    while (!stop.load()) node.messenger().Wait(absl::Seconds(1));
  };
  std::atomic<bool> stop{false};
  std::thread moves([&] { wait(a, stop); });
  constexpr size_t kMessages = 50;
  size_t sent = 0;
  std::thread sends([&] {
    for (uint32_t i = 0; i < kMessages; ++i) {
      sent += a.messenger().Send(*peer, {i, "", Buffer(size_t{i} << 12)}).ok();
    }
  });
  const absl::Time start = absl::Now();
  while (b.messages.size() < kMessages && absl::Now() - start < absl::Seconds(10)) {
    const size_t before = b.messages.size();
    b.messenger().Wait(absl::Seconds(1));
    CHECK(b.messages.size() == before);
    b.messenger().Deliver();
  }
  CHECK(b.messages.size() == kMessages);
  sends.join();
  CHECK(sent == kMessages);
  stop = true;
  a.messenger().Wake();
  moves.join();
}

TEST_CASE("disconnecting with bytes on the way loses them and nothing else", "[messenger]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  TestFabrics fabrics(kind);
  TestNode a(fabrics);
  TestNode b(fabrics);
  const auto peer = a.messenger().Connect(b.messenger().address());
  const auto other = a.messenger().Connect(b.messenger().address());
  REQUIRE((peer.ok() && other.ok()));
  REQUIRE(a.messenger().Send(*other, Text(1, "first")).ok());
  const std::vector<Messenger*> all = {&a.messenger(), &b.messenger()};
  REQUIRE(fabrics.PollUntil(all, [&] { return b.messages.size() == 1; }));
  for (int i = 0; i < 4; ++i) {
    REQUIRE(a.messenger().Send(*peer, {9, "", Buffer(size_t{8} << 20)}).ok());
  }
  for (int i = 0; i < 3; ++i) a.messenger().Poll(absl::ZeroDuration());
  a.messenger().Disconnect(*peer);
  REQUIRE(a.messenger().Send(*other, Text(2, "second")).ok());
  REQUIRE(fabrics.PollUntil(all, [&] {
    return std::any_of(b.messages.begin(), b.messages.end(),
                       [](const auto& entry) { return entry.second.type == 2; });
  }));
  CHECK(a.downs.empty());
}

}  // namespace
}  // namespace annulus
