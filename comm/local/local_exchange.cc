#include "comm/local/local_exchange.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "comm/exchange_checks.h"
#include "comm/tickets.h"

namespace annulus {
namespace {

// One side of a pair that waits for the other.
struct Half {
  Exchange::Ticket ticket;
  std::byte* data;  // a send only reads it
  size_t size_bytes;
};

struct Pair {
  std::deque<Half> sends;
  std::deque<Half> receives;
};

struct Copy {
  int source;
  int dest;
  Half from;
  Half to;
};

class Group final : public LocalExchangeGroup, public std::enable_shared_from_this<Group> {
 public:
  explicit Group(int world) : world_(world), pairs_(world * world), members_(world) {}

  std::unique_ptr<Exchange> Open(int rank) override;
  void FailRank(int rank, const absl::Status& why) override;

  int world() const { return world_; }
  absl::StatusOr<Exchange::Ticket> Post(int rank, absl::Span<const SendOp> sends,
                                        absl::Span<const RecvOp> receives);
  absl::Status Wait(int rank, Exchange::Ticket ticket, absl::Time deadline);
  void Abort(int rank, absl::Status why);
  void Close(int rank);
  Exchange::Counters counters(int rank) const;

 private:
  struct Member {
    TicketBook book;
    absl::Status failed;  // why later posts fail
    Exchange::Counters counters;
  };

  Pair& pair(int source, int dest) { return pairs_[source * world_ + dest]; }
  void Match(int source, int dest, std::vector<Copy>& copies);
  void Finish(const Copy& copy);
  void FailTicket(int rank, Exchange::Ticket ticket, const absl::Status& why);
  void FailMember(int rank, const absl::Status& why);
  void AwaitQuiet(int rank, std::unique_lock<std::mutex>& lock);

  const int world_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Pair> pairs_;  // [source, dest]
  std::vector<Member> members_;
};

absl::StatusOr<Exchange::Ticket> Group::Post(int rank, absl::Span<const SendOp> sends,
                                             absl::Span<const RecvOp> receives) {
  ANNULUS_RETURN_IF_ERROR(CheckOps(sends, receives, world_));
  std::vector<Copy> copies;
  std::unique_lock<std::mutex> lock(mutex_);
  Member& member = members_[rank];
  if (!member.failed.ok()) return member.failed;
  const Exchange::Ticket ticket = member.book.Open(sends.size() + receives.size());
  for (const SendOp& op : sends) {
    auto* data = static_cast<std::byte*>(const_cast<void*>(op.data));
    pair(rank, op.peer).sends.push_back({ticket, data, op.size_bytes});
  }
  for (const RecvOp& op : receives) {
    auto* data = static_cast<std::byte*>(op.data);
    pair(op.peer, rank).receives.push_back({ticket, data, op.size_bytes});
  }
  for (const SendOp& op : sends) Match(rank, op.peer, copies);
  for (const RecvOp& op : receives) Match(op.peer, rank, copies);

  // The copies run outside the lock: their tickets stay open until they are finished.
  lock.unlock();
  for (const Copy& copy : copies) {
    if (copy.to.size_bytes != 0) {
      std::memcpy(copy.to.data, copy.from.data, copy.to.size_bytes);
    }
  }
  lock.lock();
  for (const Copy& copy : copies) Finish(copy);
  if (!copies.empty()) changed_.notify_all();
  return ticket;
}

void Group::Match(int source, int dest, std::vector<Copy>& copies) {
  Pair& queue = pair(source, dest);
  while (!queue.sends.empty() && !queue.receives.empty()) {
    const Half from = queue.sends.front();
    const Half to = queue.receives.front();
    if (from.size_bytes != to.size_bytes) {
      const absl::Status why = SizeMismatch(source, from.size_bytes, dest, to.size_bytes);
      FailTicket(source, from.ticket, why);
      FailTicket(dest, to.ticket, why);
      return;
    }
    queue.sends.pop_front();
    queue.receives.pop_front();
    copies.push_back({source, dest, from, to});
  }
}

void Group::Finish(const Copy& copy) {
  if (copy.source != copy.dest) {
    members_[copy.source].counters.bytes_sent += copy.from.size_bytes;
    members_[copy.dest].counters.bytes_received += copy.to.size_bytes;
  }
  members_[copy.source].book.Finish(copy.from.ticket);
  members_[copy.dest].book.Finish(copy.to.ticket);
}

absl::Status Group::Wait(int rank, Exchange::Ticket ticket, absl::Time deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  return members_[rank].book.Wait(ticket, deadline, lock, changed_);
}

// Takes what the ticket still has in the queues, so that its memory is free once the copies that
// already run are finished. The order of pairs is broken by that: the member has failed.
void Group::FailTicket(int rank, Exchange::Ticket ticket, const absl::Status& why) {
  Member& member = members_[rank];
  member.book.Fail(ticket, why);
  if (member.failed.ok()) member.failed = why;
  const auto drop = [&](std::deque<Half>& queue) {
    const auto is_ours = [&](const Half& half) { return half.ticket == ticket; };
    for (size_t n = std::erase_if(queue, is_ours); n > 0; --n) member.book.Finish(ticket);
  };
  for (int peer = 0; peer < world_; ++peer) {
    drop(pair(rank, peer).sends);
    drop(pair(peer, rank).receives);
  }
  changed_.notify_all();
}

void Group::FailMember(int rank, const absl::Status& why) {
  Member& member = members_[rank];
  if (member.failed.ok()) member.failed = why;
  for (Exchange::Ticket ticket : member.book.unfinished()) FailTicket(rank, ticket, why);
}

void Group::AwaitQuiet(int rank, std::unique_lock<std::mutex>& lock) {
  changed_.wait(lock, [&] { return members_[rank].book.unfinished().empty(); });
}

void Group::Abort(int rank, absl::Status why) {
  ANNULUS_CHECK(!why.ok());
  std::unique_lock<std::mutex> lock(mutex_);
  for (int other = 0; other < world_; ++other) {
    FailMember(other, other == rank ? why : AbortedByRank(rank, why.ToString()));
  }
  AwaitQuiet(rank, lock);
}

void Group::Close(int rank) {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    if (members_[rank].book.unfinished().empty()) return;
  }
  Abort(rank, absl::CancelledError("closed with operations in flight"));
}

void Group::FailRank(int rank, const absl::Status& why) {
  std::unique_lock<std::mutex> lock(mutex_);
  const absl::Status down = RankIsDown(rank, why.message());
  for (int other = 0; other < world_; ++other) {
    if (other == rank) continue;
    std::deque<Half> needing = pair(other, rank).sends;
    const std::deque<Half>& receives = pair(rank, other).receives;
    needing.insert(needing.end(), receives.begin(), receives.end());
    for (const Half& half : needing) FailTicket(other, half.ticket, down);
    if (members_[other].failed.ok()) members_[other].failed = down;
  }
  FailMember(rank, down);
  AwaitQuiet(rank, lock);
}

Exchange::Counters Group::counters(int rank) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return members_[rank].counters;
}

class LocalExchange final : public Exchange {
 public:
  LocalExchange(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}
  ~LocalExchange() override { group_->Close(rank_); }

  const Capabilities& capabilities() const override { return capabilities_; }
  int rank() const override { return rank_; }
  int world() const override { return group_->world(); }

  absl::StatusOr<Ticket> Post(absl::Span<const SendOp> sends,
                              absl::Span<const RecvOp> receives) override {
    return group_->Post(rank_, sends, receives);
  }
  absl::Status Wait(Ticket ticket, absl::Time deadline) override {
    return group_->Wait(rank_, ticket, deadline);
  }
  void Abort(absl::Status why) override { group_->Abort(rank_, std::move(why)); }
  Counters counters() const override { return group_->counters(rank_); }

 private:
  const std::shared_ptr<Group> group_;
  const int rank_;
  const Capabilities capabilities_{"local", MemoryKind::kHost};
};

std::unique_ptr<Exchange> Group::Open(int rank) {
  ANNULUS_CHECK(rank >= 0 && rank < world_);
  return std::make_unique<LocalExchange>(shared_from_this(), rank);
}

}  // namespace

std::shared_ptr<LocalExchangeGroup> LocalExchangeGroup::Create(int world) {
  ANNULUS_CHECK(world >= 1);
  return std::make_shared<Group>(world);
}

std::vector<std::unique_ptr<Exchange>> MakeLocalExchanges(int world) {
  const std::shared_ptr<LocalExchangeGroup> group = LocalExchangeGroup::Create(world);
  std::vector<std::unique_ptr<Exchange>> exchanges;
  for (int rank = 0; rank < world; ++rank) exchanges.push_back(group->Open(rank));
  return exchanges;
}

}  // namespace annulus
