// What the others of an exchange, or strangers, may say to it, and what they may not: over a
// transport that is none.
#include "comm/piece_exchange.h"

#include <deque>
#include <utility>
#include <vector>

#include "tests/catch.h"

namespace annulus {
namespace {

constexpr uint64_t kChannel = 7;
constexpr size_t kPieceBytes = 100;

struct HandClock final : Clock {
  absl::Time Now() const override { return now; }
  absl::Time now = absl::UnixEpoch();
};

struct FakeTransport final : PieceTransport {
  size_t piece_bytes_max() const override { return kPieceBytes; }
  std::unique_lock<FairLock> Lock() override { return std::unique_lock<FairLock>(lock); }
  void WakeIfAsleep() override {}
  FairLock lock;
};

// Keeps what it is given.
struct FakeLink final : PieceLink {
  void Send(Piece piece) override { sent.push_back(std::move(piece)); }
  void DropUnsent(const void* owner) override {
    auto pieces = std::exchange(sent, {});
    for (Piece& piece : pieces) {
      if (piece.owner != owner) {
        sent.push_back(std::move(piece));
      } else if (piece.done) {
        piece.done(false);
      }
    }
  }
  std::deque<Piece> sent;
};

// Rank 0 of an exchange of two, whose rank 1 is whoever calls Hear and Place.
struct Rig {
  void Open() { exchange = *hub.Open("fake", kChannel, 0, {nullptr, link}); }
  void Hear(PieceHeader::Kind kind, uint64_t sequence, uint64_t size_bytes, uint64_t channel,
            absl::string_view text = "") {
    hub.OnMessage({channel, sequence, 0, size_bytes, 1, static_cast<uint32_t>(kind)}, text);
  }
  void Hear(PieceHeader::Kind kind, uint64_t sequence, uint64_t size_bytes) {
    Hear(kind, sequence, size_bytes, kChannel);
  }
  // A piece of a send of `whole` bytes; false if it has no place.
  bool Arrive(uint64_t sequence, uint64_t offset, size_t bytes, uint64_t whole) {
    const PieceHeader header{kChannel, sequence, offset, whole, 1, PieceHeader::kData};
    const auto place = hub.Place(header, bytes);
    if (!place.has_value()) return false;
    std::fill_n(*place, bytes, std::byte{1});
    hub.OnArrived(header, bytes);
    return true;
  }
  absl::Status Failure() { return exchange->Post({}, {}).status(); }

  FakeTransport transport;
  HandClock clock;
  PieceHub hub{transport, clock};
  std::shared_ptr<FakeLink> link = std::make_shared<FakeLink>();
  std::unique_ptr<Exchange> exchange;
};

TEST_CASE("a receive is whole once each of its pieces has come, in any order") {
  Rig rig;
  rig.Open();
  std::vector<std::byte> memory(250);
  const auto ticket = rig.exchange->Post({}, {{1, memory.data(), memory.size()}});
  REQUIRE(ticket.ok());
  CHECK(rig.Arrive(0, 200, 50, 250));
  CHECK(rig.Arrive(0, 0, 100, 250));
  CHECK(absl::IsDeadlineExceeded(rig.exchange->Wait(*ticket, absl::UnixEpoch())));
  CHECK(rig.Arrive(0, 100, 100, 250));
  CHECK(rig.exchange->Wait(*ticket, absl::UnixEpoch()).ok());
  CHECK(memory == std::vector<std::byte>(250, std::byte{1}));
}

// Bytes that nobody sent would be recycled memory, and reach an answer.
TEST_CASE("pieces that repeat, overlap or lie apart never make a receive whole") {
  Rig rig;
  rig.Open();
  std::vector<std::byte> memory(250);
  const auto ticket = rig.exchange->Post({}, {{1, memory.data(), memory.size()}});
  REQUIRE(ticket.ok());
  REQUIRE(rig.Arrive(0, 0, 100, 250));
  SECTION("the same again") {
    CHECK(!rig.Arrive(0, 0, 100, 250));
  }
  SECTION("half of one more") {
    CHECK(!rig.Arrive(0, 50, 100, 250));
  }
  SECTION("short") {
    CHECK(!rig.Arrive(0, 100, 99, 250));
  }
  SECTION("beyond the end") {
    CHECK(!rig.Arrive(0, 200, 100, 250));
  }
  SECTION("far beyond the end") {
    CHECK(!rig.Arrive(0, ~uint64_t{0} - 30, 50, 250));
  }
  SECTION("of another size") {
    CHECK(!rig.Arrive(0, 100, 100, 300));
  }
  CHECK(absl::IsInternal(rig.exchange->Wait(*ticket, absl::UnixEpoch())));
  CHECK(absl::IsInternal(rig.Failure()));
}

TEST_CASE("a receive is announced once") {
  Rig rig;
  rig.Open();
  const std::byte data[300] = {};
  const auto ticket = rig.exchange->Post({{1, data, sizeof data}}, {});
  REQUIRE(ticket.ok());
  rig.Hear(PieceHeader::kReady, 0, sizeof data);
  CHECK(rig.link->sent.size() == 3);
  rig.Hear(PieceHeader::kReady, 0, sizeof data);
  CHECK(rig.link->sent.empty());
  CHECK(absl::IsInternal(rig.exchange->Wait(*ticket, absl::UnixEpoch())));
}

TEST_CASE("receives that are announced before their sends are bounded") {
  Rig rig;
  rig.Open();
  SECTION("far ahead") {
    rig.Hear(PieceHeader::kReady, ~uint64_t{0}, 1);
  }
  SECTION("the first too many") {
    rig.Hear(PieceHeader::kReady, kReadyMax, 1);
  }
  SECTION("twice") {
    rig.Hear(PieceHeader::kReady, 3, 1);
    CHECK(rig.Failure().ok());
    rig.Hear(PieceHeader::kReady, 3, 2);
  }
  SECTION("of no kind") {
    rig.Hear(static_cast<PieceHeader::Kind>(77), 0, 0);
  }
  CHECK(absl::IsInternal(rig.Failure()));
}

TEST_CASE("what comes before its exchange is bounded in count, bytes and time") {
  Rig rig;
  const std::string reason(kReasonBytesMax, 'r');
  SECTION("count") {
    for (uint64_t i = 0; i < 3 * kEarlyMax; ++i)
      rig.Hear(PieceHeader::kReady, i, 1, 1000 + i % 999);
    CHECK(rig.hub.early_bytes() <= kEarlyBytesMax);
  }
  SECTION("bytes") {
    for (uint64_t i = 0; i < 3 * kEarlyMax; ++i) {
      rig.Hear(PieceHeader::kAbort, i, 1, 1000 + i % 999, reason);
    }
    CHECK(rig.hub.early_bytes() <= kEarlyBytesMax);
  }
  SECTION("bytes of one") {
    rig.Hear(PieceHeader::kAbort, 0, 1, 1000, reason + "r");
    CHECK(rig.hub.early_bytes() == 0);
  }
  SECTION("time") {
    rig.Hear(PieceHeader::kReady, 0, 1, 1000);
    const size_t one = rig.hub.early_bytes();
    rig.clock.now += kEarlyTime;
    rig.Hear(PieceHeader::kReady, 0, 1, 1001);
    CHECK(rig.hub.early_bytes() == one);
  }
  // The newest are there for whom they are meant.
  rig.Hear(PieceHeader::kReady, 0, 10);
  rig.Open();
  const std::byte data[10] = {};
  const auto ticket = rig.exchange->Post({{1, data, sizeof data}}, {});
  REQUIRE(ticket.ok());
  REQUIRE(rig.link->sent.size() == 1);
  rig.link->sent[0].done(true);
  CHECK(rig.exchange->Wait(*ticket, absl::UnixEpoch()).ok());
}

}  // namespace
}  // namespace annulus
