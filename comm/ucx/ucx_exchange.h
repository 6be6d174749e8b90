// Internal to comm/ucx: exchanges over a UcxTransport. A receive announces itself to the source
// (READY with its sequence number and size); only then does the source send, in pieces that go
// straight into the posted memory. So nothing ever waits in memory that nobody posted, sizes are
// compared before a byte moves, and what comes for an aborted receive is dropped.
// Thread rule: as exchange.h says; the hub and the handling of messages need the transport's lock.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "comm/exchange.h"
#include "comm/tickets.h"
#include "comm/ucx/ucx_transport.h"

namespace annulus {

class UcxExchangeHub;

// Of UcxAm::kExchange.
struct UcxExchangeHeader {
  enum Kind : uint32_t {
    kReady,     // a receive is posted: `size_bytes` are expected
    kData,      // a piece of a send
    kMismatch,  // the send that a receive is paired with has `size_bytes`
    kAbort,     // the text says why
  };

  uint64_t channel;
  uint64_t sequence;  // of the pair, from its source to its destination
  uint64_t offset;
  uint64_t size_bytes;
  uint32_t rank;  // that sends this
  uint32_t kind;
};

class UcxExchange final : public Exchange {
 public:
  UcxExchange(UcxExchangeHub& hub, uint64_t channel, int rank,
              std::vector<std::shared_ptr<UcxLink>> links);
  ~UcxExchange() override;

  const Capabilities& capabilities() const override { return capabilities_; }
  int rank() const override { return rank_; }
  int world() const override { return static_cast<int>(members_.size()); }
  absl::StatusOr<Ticket> Post(absl::Span<const SendOp> sends, absl::Span<const RecvOp> receives,
                              StreamHandle stream) override;
  absl::Status Wait(Ticket ticket, absl::Time deadline) override;
  void Abort(absl::Status why) override;
  Counters counters() const override;

  // For the hub, with the transport's lock held.
  void OnMessage(const UcxExchangeHeader& header, absl::string_view text,
                 absl::Span<const std::byte> data);
  void OnLinkDown(const UcxLink& link, const absl::Status& why);

 private:
  struct Outgoing {
    Ticket ticket;
    const std::byte* data;
    size_t size_bytes;
    int pieces = 0;  // that the link has; 0 before READY
  };
  struct Incoming {
    Ticket ticket;
    std::byte* data;
    size_t size_bytes;
    size_t received_bytes = 0;
  };
  struct Member {
    std::shared_ptr<UcxLink> link;  // null: ourselves
    uint64_t next_send = 0;
    uint64_t next_receive = 0;
    std::map<uint64_t, Outgoing> sends;
    std::map<uint64_t, Incoming> receives;
    std::map<uint64_t, size_t> ready;  // announced before the send was posted
  };

  void PostSend(Ticket ticket, const SendOp& op);
  void PostReceive(Ticket ticket, const RecvOp& op);
  absl::StatusOr<Ticket> PostToSelf(absl::Span<const SendOp> sends,
                                    absl::Span<const RecvOp> receives);
  void StartSend(int peer, uint64_t sequence, size_t expected_bytes);
  void PieceDone(int peer, uint64_t sequence, size_t size_bytes, bool sent);
  void OnData(const UcxExchangeHeader& header, absl::Span<const std::byte> data);
  void Tell(int peer, UcxExchangeHeader::Kind kind, uint64_t sequence, size_t size_bytes,
            absl::string_view text = {});
  void FinishOp(Ticket ticket);
  void FailTicket(Ticket ticket, const absl::Status& why);
  void FailAll(const absl::Status& why);
  std::vector<Ticket> unfinished() const;

  UcxExchangeHub& hub_;
  const uint64_t channel_;
  const int rank_;
  const Capabilities capabilities_{"ucx", MemoryKind::kHost};
  std::vector<Member> members_;           // by rank
  const std::unique_ptr<Exchange> self_;  // of one rank: what we send to ourselves
  absl::Status failed_;                   // why later posts fail
  bool aborted_ = false;                  // by us: the others were told

  // Taken after the transport's lock, or alone: whoever waits must not compete with the poller.
  mutable std::mutex tickets_mutex_;
  std::condition_variable changed_;
  TicketBook book_;
  std::map<Ticket, Ticket> self_tickets_;
  std::atomic<uint64_t> bytes_sent_{0};
  std::atomic<uint64_t> bytes_received_{0};
};

// The exchanges of a fabric, the links that they share, and what came too early for any.
class UcxExchangeHub {
 public:
  explicit UcxExchangeHub(UcxTransport& transport);

  UcxTransport& transport() { return transport_; }
  // Without the lock.
  absl::StatusOr<std::unique_ptr<Exchange>> Open(uint64_t channel, int rank,
                                                 absl::Span<const std::string> addresses);
  void Remove(uint64_t channel) { exchanges_.erase(channel); }

 private:
  struct Early {
    UcxExchangeHeader header;
    std::string text;
  };

  void OnMessage(absl::Span<const std::byte> header, absl::Span<const std::byte> data);
  void KeepEarly(const UcxExchangeHeader& header, absl::string_view text);
  void OnLinkDown(const UcxLink& link, const absl::Status& why);

  UcxTransport& transport_;
  std::map<uint64_t, UcxExchange*> exchanges_;          // by channel
  std::map<uint64_t, std::shared_ptr<UcxLink>> links_;  // by the remote's identity
  std::map<uint64_t, std::vector<Early>> early_;        // by channel
  std::deque<uint64_t> early_order_;                    // channels of early_, oldest first
  size_t early_count_ = 0;
};

}  // namespace annulus
