// Internal to comm: exchanges over a transport of messages. A receive announces itself to the
// source (kReady with its sequence number and size); only then does the source send, in pieces that
// go straight into the posted memory. So nothing ever waits in memory that nobody posted, sizes are
// compared before a byte moves, and what comes for an aborted receive is dropped.
// Thread rule: as exchange.h says; the hub and the handling of pieces need the transport's lock.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/clock.h"
#include "comm/exchange.h"
#include "comm/piece_map.h"
#include "comm/piece_transport.h"
#include "comm/tickets.h"

namespace annulus {

class PieceHub;

class PieceExchange final : public Exchange {
 public:
  // A link for each rank, null for ourselves.
  PieceExchange(PieceHub& hub, std::string name, uint64_t channel, int rank,
                std::vector<std::shared_ptr<PieceLink>> links);
  ~PieceExchange() override;

  const Capabilities& capabilities() const override { return capabilities_; }
  int rank() const override { return rank_; }
  int world() const override { return static_cast<int>(members_.size()); }
  absl::StatusOr<Ticket> Post(absl::Span<const SendOp> sends,
                              absl::Span<const RecvOp> receives) override;
  absl::Status Wait(Ticket ticket, absl::Time deadline) override;
  void Abort(absl::Status why) override;
  Counters counters() const override;

  // For the hub, with the transport's lock held. What no member of ours would say fails the
  // exchange, with INTERNAL.
  void OnMessage(const PieceHeader& header, absl::string_view text);
  std::optional<std::byte*> Place(const PieceHeader& header, size_t size_bytes);
  void OnArrived(const PieceHeader& header, size_t size_bytes);
  void OnLinkDown(const PieceLink& link, const absl::Status& why);
  void FailAll(const absl::Status& why);

 private:
  struct Outgoing {
    Ticket ticket;
    const std::byte* data;
    size_t size_bytes;
    int pieces = 0;  // that the link has; 0 before kReady
  };
  struct Incoming {
    Ticket ticket;
    std::byte* data;
    size_t size_bytes;
    PieceMap pieces;
    int arriving = 0;      // pieces that the transport is writing
    bool dropped = false;  // its ticket has failed: it ends when nothing is arriving
  };
  struct Member {
    std::shared_ptr<PieceLink> link;  // null: ourselves
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
  void OnReady(int peer, uint64_t sequence, size_t size_bytes);
  void StartSend(int peer, uint64_t sequence, size_t expected_bytes);
  void PieceDone(int peer, uint64_t sequence, size_t size_bytes, bool sent);
  void Tell(int peer, PieceHeader::Kind kind, uint64_t sequence, size_t size_bytes,
            absl::string_view text = {});
  void FinishOp(Ticket ticket);
  void FailTicket(Ticket ticket, const absl::Status& why);
  std::vector<Ticket> unfinished() const;

  PieceHub& hub_;
  const uint64_t channel_;
  const int rank_;
  const Capabilities capabilities_;
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

// What is kept of messages for exchanges that are not open yet: beyond it the oldest are forgotten,
// and who waits for them ends at its deadline. Nobody's call takes as long as kEarlyTime.
inline constexpr size_t kEarlyMax = 65536;
inline constexpr size_t kEarlyBytesMax = size_t{16} << 20;
inline constexpr absl::Duration kEarlyTime = absl::Minutes(10);
// Receives that a member may announce before the sends are posted.
inline constexpr size_t kReadyMax = 65536;
// Of a message that says why an exchange is aborted.
inline constexpr size_t kReasonBytesMax = 512;

// The exchanges over a transport, and what came too early for any.
class PieceHub {
 public:
  // Both outlive it.
  explicit PieceHub(PieceTransport& transport, const Clock& clock = Clock::Real())
      : transport_(transport), clock_(clock) {}

  PieceTransport& transport() { return transport_; }

  // INVALID_ARGUMENT if the channel is in use.
  absl::StatusOr<std::unique_ptr<Exchange>> Open(std::string name, uint64_t channel, int rank,
                                                 std::vector<std::shared_ptr<PieceLink>> links);
  void Remove(uint64_t channel) { exchanges_.erase(channel); }

  // What the transport tells. A message that is not data:
  void OnMessage(const PieceHeader& header, absl::string_view text);
  // Where a piece of data goes, to be written until OnArrived; nullopt: nobody wants it any more.
  std::optional<std::byte*> Place(const PieceHeader& header, size_t size_bytes);
  void OnArrived(const PieceHeader& header, size_t size_bytes);
  void OnLinkDown(const PieceLink& link, const absl::Status& why);
  // One exchange, if it is open, cannot go on.
  void Fail(uint64_t channel, const absl::Status& why);
  // The transport itself is broken.
  void FailAll(const absl::Status& why);

  // Kept for exchanges that are not open yet.
  size_t early_bytes() const { return early_bytes_; }

 private:
  struct Early {
    PieceHeader header;
    std::string text;

    size_t bytes() const { return sizeof(Early) + text.size(); }
  };
  struct Mail {
    absl::Time since;
    std::vector<Early> messages;
  };

  void KeepEarly(const PieceHeader& header, absl::string_view text);
  void ForgetEarly(const Mail& mail);
  PieceExchange* Find(const PieceHeader& header) const;

  PieceTransport& transport_;
  const Clock& clock_;
  std::map<uint64_t, PieceExchange*> exchanges_;  // by channel
  std::map<uint64_t, Mail> early_;                // by channel
  std::deque<uint64_t> early_order_;              // channels of early_, oldest first
  size_t early_count_ = 0;
  size_t early_bytes_ = 0;
};

}  // namespace annulus
