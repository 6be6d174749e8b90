#include "comm/local/local_exchange.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
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
  explicit Group(int world) : world_(world), members_(world) {}

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
    std::condition_variable changed;  // the book
  };

  void Match(int source, int dest, std::vector<Copy>& copies);
  void Finish(const Copy& copy);
  void FailTicket(int rank, Exchange::Ticket ticket, const absl::Status& why);
  void FailMember(int rank, const absl::Status& why);
  void AwaitQuiet(int rank, std::unique_lock<std::mutex>& lock);

  const int world_;
  mutable std::mutex mutex_;
  // By (source, dest): those with a side that waits. All pairs of a large group would take more
  // than what they move.
  std::map<std::pair<int, int>, Pair> pairs_;
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
    pairs_[{rank, op.peer}].sends.push_back({ticket, data, op.size_bytes});
  }
  for (const RecvOp& op : receives) {
    auto* data = static_cast<std::byte*>(op.data);
    pairs_[{op.peer, rank}].receives.push_back({ticket, data, op.size_bytes});
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
  return ticket;
}

void Group::Match(int source, int dest, std::vector<Copy>& copies) {
  const auto found = pairs_.find({source, dest});
  if (found == pairs_.end()) return;  // matched by another operation of the same post
  Pair& queue = found->second;
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
  if (queue.sends.empty() && queue.receives.empty()) pairs_.erase(found);
}

void Group::Finish(const Copy& copy) {
  if (copy.source != copy.dest) {
    members_[copy.source].counters.bytes_sent += copy.from.size_bytes;
    members_[copy.dest].counters.bytes_received += copy.to.size_bytes;
  }
  members_[copy.source].book.Finish(copy.from.ticket);
  members_[copy.dest].book.Finish(copy.to.ticket);
  members_[copy.source].changed.notify_all();
  members_[copy.dest].changed.notify_all();
}

absl::Status Group::Wait(int rank, Exchange::Ticket ticket, absl::Time deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  Member& member = members_[rank];
  return member.book.Wait(ticket, deadline, lock, member.changed);
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
  for (auto& [ends, queue] : pairs_) {
    if (ends.first == rank) drop(queue.sends);
    if (ends.second == rank) drop(queue.receives);
  }
  member.changed.notify_all();
}

void Group::FailMember(int rank, const absl::Status& why) {
  Member& member = members_[rank];
  if (member.failed.ok()) member.failed = why;
  for (Exchange::Ticket ticket : member.book.unfinished()) FailTicket(rank, ticket, why);
}

void Group::AwaitQuiet(int rank, std::unique_lock<std::mutex>& lock) {
  Member& member = members_[rank];
  member.changed.wait(lock, [&] { return member.book.unfinished().empty(); });
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
  std::vector<std::pair<int, Exchange::Ticket>> needing;  // it, by the others
  for (const auto& [ends, queue] : pairs_) {
    if (ends.second == rank) {
      for (const Half& half : queue.sends) needing.emplace_back(ends.first, half.ticket);
    }
    if (ends.first == rank) {
      for (const Half& half : queue.receives) needing.emplace_back(ends.second, half.ticket);
    }
  }
  for (const auto& [other, ticket] : needing) {
    if (other != rank) FailTicket(other, ticket, down);
  }
  for (int other = 0; other < world_; ++other) {
    if (other != rank && members_[other].failed.ok()) members_[other].failed = down;
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
