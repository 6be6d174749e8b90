#include "comm/piece_exchange.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "comm/exchange_checks.h"
#include "comm/local/local_exchange.h"

namespace annulus {
namespace {

// A member says what no member of ours would: nothing that it moves can be trusted.
absl::Status Nonsense(int peer, absl::string_view what) {
  return absl::InternalError(absl::StrCat("rank ", peer, " of the exchange: ", what));
}

}  // namespace

PieceExchange::PieceExchange(PieceHub& hub, std::string name, uint64_t channel, int rank,
                             std::vector<std::shared_ptr<PieceLink>> links)
    : hub_(hub),
      channel_(channel),
      rank_(rank),
      capabilities_{std::move(name), MemoryKind::kHost},
      members_(links.size()),
      self_(LocalExchangeGroup::Create(1)->Open(0)) {
  for (size_t peer = 0; peer < links.size(); ++peer) members_[peer].link = std::move(links[peer]);
}

PieceExchange::~PieceExchange() {
  if (!unfinished().empty()) Abort(absl::CancelledError("closed with operations in flight"));
  const auto lock = hub_.transport().Lock();
  hub_.Remove(channel_);
}

absl::StatusOr<Exchange::Ticket> PieceExchange::Post(absl::Span<const SendOp> sends,
                                                     absl::Span<const RecvOp> receives) {
  ANNULUS_RETURN_IF_ERROR(CheckOps(sends, receives, world()));
  const auto to_self = [this](const auto& op) { return op.peer == rank_; };
  const size_t own = std::count_if(sends.begin(), sends.end(), to_self) +
                     std::count_if(receives.begin(), receives.end(), to_self);
  const auto lock = hub_.transport().Lock();
  if (!failed_.ok()) return failed_;
  Ticket self_ticket = 0;
  if (own != 0) {
    ANNULUS_ASSIGN_OR_RETURN(self_ticket, PostToSelf(sends, receives));
  }
  Ticket ticket;
  {
    const std::lock_guard<std::mutex> tickets_lock(tickets_mutex_);
    ticket = book_.Open(sends.size() + receives.size() - own);
    if (own != 0) self_tickets_.emplace(ticket, self_ticket);
  }
  // Receives first: their announcements do not wait behind what we send.
  for (const RecvOp& op : receives) {
    if (op.peer != rank_) PostReceive(ticket, op);
  }
  for (const SendOp& op : sends) {
    if (op.peer != rank_) PostSend(ticket, op);
  }
  hub_.transport().WakeIfAsleep();
  return ticket;
}

absl::StatusOr<Exchange::Ticket> PieceExchange::PostToSelf(absl::Span<const SendOp> sends,
                                                           absl::Span<const RecvOp> receives) {
  std::vector<SendOp> own_sends;
  std::vector<RecvOp> own_receives;
  for (const SendOp& op : sends) {
    if (op.peer == rank_) own_sends.push_back({0, op.data, op.size_bytes});
  }
  for (const RecvOp& op : receives) {
    if (op.peer == rank_) own_receives.push_back({0, op.data, op.size_bytes});
  }
  return self_->Post(own_sends, own_receives);
}

void PieceExchange::PostReceive(Ticket ticket, const RecvOp& op) {
  Member& member = members_[op.peer];
  const uint64_t sequence = member.next_receive++;
  const size_t piece_bytes_max = hub_.transport().piece_bytes_max();
  member.receives.emplace(sequence,
                          Incoming{ticket, static_cast<std::byte*>(op.data), op.size_bytes,
                                   PieceMap(op.size_bytes, piece_bytes_max)});
  Tell(op.peer, PieceHeader::kReady, sequence, op.size_bytes);
}

void PieceExchange::PostSend(Ticket ticket, const SendOp& op) {
  Member& member = members_[op.peer];
  const uint64_t sequence = member.next_send++;
  member.sends.emplace(sequence,
                       Outgoing{ticket, static_cast<const std::byte*>(op.data), op.size_bytes});
  if (const auto it = member.ready.find(sequence); it != member.ready.end()) {
    const size_t expected_bytes = it->second;
    member.ready.erase(it);
    StartSend(op.peer, sequence, expected_bytes);
  }
}

void PieceExchange::StartSend(int peer, uint64_t sequence, size_t expected_bytes) {
  Member& member = members_[peer];
  Outgoing& send = member.sends.at(sequence);
  if (send.size_bytes != expected_bytes) {
    Tell(peer, PieceHeader::kMismatch, sequence, send.size_bytes);
    FailTicket(send.ticket, SizeMismatch(rank_, send.size_bytes, peer, expected_bytes));
    return;
  }
  const size_t piece_bytes_max = hub_.transport().piece_bytes_max();
  const std::byte* data = send.data;
  const size_t size_bytes = send.size_bytes;
  send.pieces =
      static_cast<int>(std::max<size_t>(1, (size_bytes + piece_bytes_max - 1) / piece_bytes_max));
  size_t offset = 0;
  // The entry may end within Send, when its last piece is done at once.
  do {
    Piece piece;
    piece.header = {channel_,          sequence, offset, size_bytes, static_cast<uint32_t>(rank_),
                    PieceHeader::kData};
    piece.size_bytes = std::min(piece_bytes_max, size_bytes - offset);
    if (piece.size_bytes != 0) piece.data = data + offset;
    piece.owner = this;
    piece.done = [this, peer, sequence, bytes = piece.size_bytes](bool sent) {
      PieceDone(peer, sequence, bytes, sent);
    };
    offset += piece.size_bytes;
    member.link->Send(std::move(piece));
  } while (offset < size_bytes);
}

void PieceExchange::PieceDone(int peer, uint64_t sequence, size_t size_bytes, bool sent) {
  Outgoing& send = members_[peer].sends.at(sequence);
  if (sent) {
    bytes_sent_ += size_bytes;
  } else {
    const std::lock_guard<std::mutex> lock(tickets_mutex_);
    book_.Fail(send.ticket, RankIsDown(peer, "its connection was lost"));
  }
  if (--send.pieces > 0) return;
  const Ticket ticket = send.ticket;
  members_[peer].sends.erase(sequence);
  FinishOp(ticket);
}

void PieceExchange::OnMessage(const PieceHeader& header, absl::string_view text) {
  const int peer = static_cast<int>(header.rank);
  if (header.rank >= members_.size() || peer == rank_) return;
  Member& member = members_[peer];
  switch (header.kind) {
    case PieceHeader::kReady:
      OnReady(peer, header.sequence, header.size_bytes);
      return;
    case PieceHeader::kData:  // has a place, see Place
      return;
    case PieceHeader::kMismatch:
      if (const auto it = member.receives.find(header.sequence); it != member.receives.end()) {
        FailTicket(it->second.ticket,
                   SizeMismatch(peer, header.size_bytes, rank_, it->second.size_bytes));
      }
      return;
    case PieceHeader::kAbort:
      FailAll(AbortedByRank(peer, text));
      return;
  }
  FailAll(
      Nonsense(peer, absl::StrCat("a message of kind ", header.kind, "; expected a known kind")));
}

// Each receive is announced once. One whose send has failed meanwhile is nobody's any more.
void PieceExchange::OnReady(int peer, uint64_t sequence, size_t size_bytes) {
  Member& member = members_[peer];
  if (const auto it = member.sends.find(sequence); it != member.sends.end()) {
    if (it->second.pieces == 0) return StartSend(peer, sequence, size_bytes);
    return FailAll(
        Nonsense(peer, absl::StrCat("receive ", sequence, " announced twice; expected once")));
  }
  if (sequence < member.next_send) return;
  if (sequence - member.next_send >= kReadyMax) {
    return FailAll(
        Nonsense(peer, absl::StrCat("receive ", sequence, " announced; expected at most ",
                                    kReadyMax, " before their sends")));
  }
  if (!member.ready.emplace(sequence, size_bytes).second) {
    FailAll(Nonsense(peer, absl::StrCat("receive ", sequence, " announced twice; expected once")));
  }
}

std::optional<std::byte*> PieceExchange::Place(const PieceHeader& header, size_t size_bytes) {
  if (header.rank >= members_.size()) return std::nullopt;
  auto& receives = members_[header.rank].receives;
  const auto it = receives.find(header.sequence);
  // What has failed meanwhile is not ours to write any more.
  if (it == receives.end() || it->second.dropped) return std::nullopt;
  Incoming& receive = it->second;
  if (header.size_bytes != receive.size_bytes || !receive.pieces.Take(header.offset, size_bytes)) {
    FailAll(Nonsense(
        static_cast<int>(header.rank),
        absl::StrCat("a piece at ", header.offset, " of ", size_bytes,
                     " bytes; expected each piece of a receive of ", receive.size_bytes, " once")));
    return std::nullopt;
  }
  ++receive.arriving;
  return receive.data + header.offset;
}

void PieceExchange::OnArrived(const PieceHeader& header, size_t size_bytes) {
  auto& receives = members_[header.rank].receives;
  const auto it = receives.find(header.sequence);
  ANNULUS_CHECK(it != receives.end() && it->second.arriving > 0);
  Incoming& receive = it->second;
  --receive.arriving;
  bytes_received_ += size_bytes;
  if (receive.arriving > 0 || !(receive.pieces.whole() || receive.dropped)) return;
  const Ticket ticket = receive.ticket;
  receives.erase(it);
  FinishOp(ticket);
}

void PieceExchange::Tell(int peer, PieceHeader::Kind kind, uint64_t sequence, size_t size_bytes,
                         absl::string_view text) {
  Piece piece;
  piece.header = {channel_, sequence, 0, size_bytes, static_cast<uint32_t>(rank_), kind};
  piece.text = std::string(text);
  members_[peer].link->Send(std::move(piece));
}

absl::Status PieceExchange::Wait(Ticket ticket, absl::Time deadline) {
  Ticket self_ticket = 0;
  {
    const std::lock_guard<std::mutex> lock(tickets_mutex_);
    if (const auto it = self_tickets_.find(ticket); it != self_tickets_.end()) {
      self_ticket = it->second;
    }
  }
  absl::Status self_status;
  if (self_ticket != 0) {
    self_status = self_->Wait(self_ticket, deadline);
    if (absl::IsDeadlineExceeded(self_status)) return self_status;
  }
  std::unique_lock<std::mutex> lock(tickets_mutex_);
  if (self_ticket != 0) {
    self_tickets_.erase(ticket);
    if (!self_status.ok()) book_.Fail(ticket, self_status);
  }
  return book_.Wait(ticket, deadline, lock, changed_);
}

void PieceExchange::FinishOp(Ticket ticket) {
  const std::lock_guard<std::mutex> lock(tickets_mutex_);
  book_.Finish(ticket);
  changed_.notify_all();
}

// Takes back what the ticket still has here; a send that has begun ends by itself or by
// DropUnsent, a receive that is being written when the transport is done. The order of pairs is
// broken by that, so later posts fail too.
void PieceExchange::FailTicket(Ticket ticket, const absl::Status& why) {
  if (failed_.ok()) failed_ = why;
  {
    const std::lock_guard<std::mutex> lock(tickets_mutex_);
    book_.Fail(ticket, why);
  }
  size_t taken = 0;
  for (Member& member : members_) {
    taken += std::erase_if(member.sends, [ticket](const auto& entry) {
      return entry.second.ticket == ticket && entry.second.pieces == 0;
    });
    for (auto& [sequence, receive] : member.receives) receive.dropped |= receive.ticket == ticket;
    taken += std::erase_if(member.receives, [ticket](const auto& entry) {
      return entry.second.ticket == ticket && entry.second.arriving == 0;
    });
  }
  for (; taken > 0; --taken) FinishOp(ticket);
}

void PieceExchange::FailAll(const absl::Status& why) {
  if (failed_.ok()) failed_ = why;
  for (const Ticket ticket : unfinished()) FailTicket(ticket, why);
  for (Member& member : members_) {
    if (member.link != nullptr) member.link->DropUnsent(this);
  }
  self_->Abort(why);
}

std::vector<Exchange::Ticket> PieceExchange::unfinished() const {
  const std::lock_guard<std::mutex> lock(tickets_mutex_);
  return book_.unfinished();
}

void PieceExchange::OnLinkDown(const PieceLink& link, const absl::Status& why) {
  for (int peer = 0; peer < world(); ++peer) {
    Member& member = members_[peer];
    if (member.link.get() != &link) continue;
    const absl::Status down = RankIsDown(peer, why.message());
    std::set<Ticket> needing;
    for (const auto& [sequence, send] : member.sends) needing.insert(send.ticket);
    for (const auto& [sequence, receive] : member.receives) needing.insert(receive.ticket);
    for (const Ticket ticket : needing) FailTicket(ticket, down);
    if (failed_.ok()) failed_ = down;
  }
}

void PieceExchange::Abort(absl::Status why) {
  ANNULUS_CHECK(!why.ok());
  {
    const auto lock = hub_.transport().Lock();
    FailAll(why);
    if (!std::exchange(aborted_, true)) {
      const std::string reason = why.ToString().substr(0, kReasonBytesMax);
      for (int peer = 0; peer < world(); ++peer) {
        if (peer != rank_) Tell(peer, PieceHeader::kAbort, 0, 0, reason);
      }
    }
    hub_.transport().WakeIfAsleep();
  }
  // What the transport has begun it ends, and says so.
  std::unique_lock<std::mutex> lock(tickets_mutex_);
  changed_.wait(lock, [this] { return book_.unfinished().empty(); });
}

Exchange::Counters PieceExchange::counters() const {
  return {bytes_sent_.load(), bytes_received_.load()};
}

}  // namespace annulus
