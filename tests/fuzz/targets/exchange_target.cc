#include <algorithm>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "base/check.h"
#include "comm/piece_exchange.h"
#include "tests/fuzz/targets/targets.h"

namespace annulus::fuzz {
namespace {

constexpr int kWorld = 3;
constexpr size_t kPieceBytes = 16;
constexpr size_t kOperationsMax = 200;
constexpr auto kUnwritten = std::byte{0xee};
constexpr auto kWritten = std::byte{0x11};

class FakeTransport final : public PieceTransport {
 public:
  size_t piece_bytes_max() const override { return kPieceBytes; }
  std::unique_lock<FairLock> Lock() override { return std::unique_lock<FairLock>(lock_); }
  void WakeIfAsleep() override {}

 private:
  FairLock lock_;
};

// Takes what it is given, and says so when it is told to.
class FakeLink final : public PieceLink {
 public:
  void Send(Piece piece) override { queue_.push_back(std::move(piece)); }
  void DropUnsent(const void* owner) override {
    std::deque<Piece> queue = std::exchange(queue_, {});
    for (Piece& piece : queue) {
      if (piece.owner != owner) {
        queue_.push_back(std::move(piece));
      } else if (piece.done) {
        piece.done(false);
      }
    }
  }
  void SendOne() {
    if (queue_.empty()) return;
    const Piece piece = std::move(queue_.front());
    queue_.pop_front();
    if (piece.done) piece.done(true);
  }

 private:
  std::deque<Piece> queue_;
};

struct Posted {
  Exchange* exchange;
  Exchange::Ticket ticket;
  std::vector<std::byte> memory;  // of a receive
};

// A hub with its exchanges, and what others may do to it.
class Rig {
 public:
  Rig() : hub_(transport_) {
    for (auto& link : links_) link = std::make_shared<FakeLink>();
  }
  ~Rig() {
    for (const auto& exchange : exchanges_) exchange->Abort(absl::CancelledError("the end"));
  }

  void Step(Bytes* input) {
    const unsigned what = TakeByte(input);
    const int peer = 1 + static_cast<int>(what >> 4) % (kWorld - 1);
    switch (what % 6) {
      case 0:
        return Open(TakeByte(input) % 4);
      case 1:
        return Post(peer, TakeByte(input), /*sends=*/true);
      case 2:
        return Post(peer, TakeByte(input), /*sends=*/false);
      case 3:
        return Hear(input);
      case 4: {
        const auto lock = transport_.Lock();
        return links_[peer]->SendOne();
      }
      case 5: {
        if (what < 0xf0) return links_[peer]->SendOne();
        const auto lock = transport_.Lock();
        return hub_.OnLinkDown(*links_[peer], absl::UnavailableError("gone"));
      }
    }
  }

  // Receives that have ended well; their memory is written, every byte of it.
  int CheckReceived() {
    int whole = 0;
    for (Posted& posted : posted_) {
      if (!posted.exchange->Wait(posted.ticket, absl::UnixEpoch()).ok()) continue;
      for (const std::byte byte : posted.memory) ANNULUS_CHECK(byte == kWritten);
      whole += !posted.memory.empty();
    }
    return whole;
  }

 private:
  void Open(uint64_t channel) {
    std::vector<std::shared_ptr<PieceLink>> links(std::begin(links_), std::end(links_));
    links[0] = nullptr;
    const auto lock = transport_.Lock();
    auto exchange = hub_.Open("fake", channel, 0, std::move(links));
    if (exchange.ok()) exchanges_.push_back(*std::move(exchange));
  }

  void Post(int peer, size_t size_bytes, bool sends) {
    if (exchanges_.empty() || posted_.size() >= kOperationsMax) return;
    Exchange& exchange = *exchanges_[size_bytes % exchanges_.size()];
    static const std::byte kData[256] = {};
    std::vector<std::byte> memory(sends ? 0 : size_bytes, kUnwritten);
    const auto ticket = sends ? exchange.Post({{peer, kData, size_bytes}}, {})
                              : exchange.Post({}, {{peer, memory.data(), memory.size()}});
    if (ticket.ok()) posted_.push_back({&exchange, *ticket, std::move(memory)});
  }

  void Hear(Bytes* input) {
    PieceHeader header;
    header.channel = TakeByte(input) % 5;
    header.sequence = TakeByte(input);
    header.offset = TakeByte(input);
    header.size_bytes = TakeByte(input);
    header.rank = TakeByte(input) % (kWorld + 1);
    header.kind = TakeByte(input) % 6;
    const size_t bytes = TakeByte(input);
    // Numbers that sums overflow with.
    for (uint64_t* number : {&header.sequence, &header.offset, &header.size_bytes}) {
      if (*number >= 0xf0) *number = ~uint64_t{0} - (*number - 0xf0);
    }
    const auto lock = transport_.Lock();
    if (header.kind != PieceHeader::kData) return hub_.OnMessage(header, "why");
    const std::optional<std::byte*> place = hub_.Place(header, bytes);
    if (!place.has_value()) return;
    std::fill_n(*place, bytes, kWritten);
    hub_.OnArrived(header, bytes);
  }

  FakeTransport transport_;
  PieceHub hub_;
  std::shared_ptr<FakeLink> links_[kWorld];
  std::vector<std::unique_ptr<Exchange>> exchanges_;
  std::vector<Posted> posted_;
};

}  // namespace

bool TryExchange(Bytes input) {
  Rig rig;
  while (!input.empty()) rig.Step(&input);
  return rig.CheckReceived() > 0;
}

}  // namespace annulus::fuzz
