#include "runtime/engine/engine.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/engine/rows.h"
#include "runtime/engine/tiles.h"
#include "runtime/engine/wire_rows.h"
#include "runtime/engine/working_kv.h"

namespace annulus {
namespace {

// How often a wait looks at the cancel flag.
constexpr absl::Duration kCancelPeriod = absl::Milliseconds(10);

class RankRun {
 public:
  RankRun(const RankTask& task, Backend& backend, Exchange& exchange)
      : task_(task),
        plan_(*task.plan),
        problem_(plan_.problem()),
        backend_(backend),
        exchange_(exchange),
        space_(task.kv->memory() == MemoryKind::kHost ? HostMemory() : backend.memory()),
        tiles_(problem_, space_),
        kv_(plan_, task.rank, *task.kv, space_),
        round_compute_s_(plan_.rounds().size()) {}

  absl::StatusOr<RankResult> Run();

 private:
  // A transfer of the round in flight and the memory it uses: the exchange's, or the caller's.
  struct Flight {
    const Transfer* transfer;
    Buffer bytes;
  };

  absl::Status Prepare();
  absl::Status RunRound(const Round& round, int index);
  absl::Status StartTransfers(const Round& round);
  absl::StatusOr<Buffer> PackOutgoing(const Transfer& transfer);
  absl::StatusOr<Buffer> FromCaller(size_t bytes);
  // Between the run's memory and that of an exchange or of the caller; no copy if they are one.
  absl::StatusOr<Buffer> MoveTo(MemoryKind kind, Buffer bytes);
  absl::StatusOr<Buffer> MoveFrom(MemoryKind kind, Buffer bytes);
  absl::Status Accept(Flight flight);
  absl::Status Launch(const Compute& compute);
  absl::Status WaitFor(Exchange::Ticket ticket);
  void Trace(absl::string_view name, absl::Time begin) const {
    if (task_.trace) task_.trace(name, begin, absl::Now());
  }

  const RankTask& task_;
  const Plan& plan_;
  const Problem& problem_;
  Backend& backend_;
  Exchange& exchange_;
  MemorySpace& space_;
  Tiles tiles_;
  WorkingKv kv_;
  // Of the round that runs. They live until the exchange is done with them: on an error, until it
  // was aborted.
  std::vector<Flight> out_;
  std::vector<Flight> in_;
  size_t caller_offset_ = 0;  // consumed of q_packed
  std::vector<Buffer> for_caller_;
  int64_t caller_bytes_ = 0;
  std::vector<double> round_compute_s_;
  double wait_s_ = 0;
};

absl::Status RankRun::Prepare() {
  if (exchange_.capabilities().memory != MemoryKind::kHost &&
      exchange_.capabilities().memory != space_.kind()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the KV lies in host memory, but the exchange, ",
                     exchange_.capabilities().name, ", moves a GPU's memory"));
  }
  if (problem_.home == Home::kOwners) {
    const Rows rows(plan_.HomeRows(task_.rank), problem_.q_range());
    if (task_.q.tokens != rows.count()) {
      return absl::InternalError(absl::StrCat("rank ", task_.rank, " was given ", task_.q.tokens,
                                              " query rows, the plan says ", rows.count()));
    }
    if (task_.q.dtype != problem_.dtype) {
      return absl::InternalError(absl::StrCat("rank ", task_.rank, " was given queries of ",
                                              Name(task_.q.dtype), ", the plan says ",
                                              Name(problem_.dtype)));
    }
    ANNULUS_RETURN_IF_ERROR(tiles_.Borrow(rows, {0, problem_.heads}, task_.q));
  }
  for (const Round& round : plan_.rounds()) {
    for (const Compute& compute : round.computes) {
      if (compute.rank != task_.rank) continue;
      ANNULUS_RETURN_IF_ERROR(
          tiles_.ForCompute(Rows(compute.q_blocks, problem_.q_range()), compute.heads).status());
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Buffer> RankRun::PackOutgoing(const Transfer& transfer) {
  const Rows rows(transfer.blocks, problem_.q_range());
  switch (transfer.kind) {
    case Transfer::Kind::kKv:
      return kv_.Pack(transfer);
    case Transfer::Kind::kQuery:
      return PackQueryRowsIn(space_, problem_, rows, transfer.heads,
                             Rows(plan_.HomeRows(task_.rank), problem_.q_range()), task_.q);
    case Transfer::Kind::kPartial: {
      ANNULUS_ASSIGN_OR_RETURN(
          PartialBuffer partial,
          MakePartial(space_, rows.count(), transfer.heads.count, problem_.v_head_dim));
      ANNULUS_RETURN_IF_ERROR(tiles_.Gather(rows, transfer.heads, partial.view));
      return std::move(partial.bytes);
    }
  }
  return absl::InternalError("unknown kind of transfer");
}

absl::StatusOr<Buffer> RankRun::MoveTo(MemoryKind kind, Buffer bytes) {
  if (kind == space_.kind()) return bytes;
  Buffer moved(bytes.size());
  ANNULUS_RETURN_IF_ERROR(space_.CopyOut(bytes.data(), moved.data(), bytes.size()));
  return moved;
}

absl::StatusOr<Buffer> RankRun::MoveFrom(MemoryKind kind, Buffer bytes) {
  if (kind == space_.kind()) return bytes;
  return MovedTo(space_, std::move(bytes));
}

absl::StatusOr<Buffer> RankRun::FromCaller(size_t bytes) {
  if (task_.q_packed.size() - caller_offset_ < bytes) {
    return absl::InternalError(absl::StrCat("the caller gave rank ", task_.rank, " ",
                                            task_.q_packed.size(),
                                            " bytes, fewer than the plan says"));
  }
  return task_.q_packed.Part(std::exchange(caller_offset_, caller_offset_ + bytes), bytes);
}

absl::Status RankRun::StartTransfers(const Round& round) {
  const MemoryKind wire_memory = exchange_.capabilities().memory;
  for (const Transfer& transfer : round.transfers) {
    const size_t bytes = static_cast<size_t>(plan_.Bytes(transfer));
    if (bytes == 0) continue;
    if (transfer.source == task_.rank) {
      ANNULUS_ASSIGN_OR_RETURN(Buffer packed, PackOutgoing(transfer));
      if (packed.size() != bytes) {
        return absl::InternalError(absl::StrCat("transfer to rank ", transfer.destination, " has ",
                                                packed.size(), " bytes, the plan says ", bytes));
      }
      const bool to_caller = transfer.destination == kCaller;
      ANNULUS_ASSIGN_OR_RETURN(
          packed, MoveTo(to_caller ? MemoryKind::kHost : wire_memory, std::move(packed)));
      if (to_caller) {
        caller_bytes_ += static_cast<int64_t>(bytes);
        for_caller_.push_back(std::move(packed));
      } else {
        out_.push_back({&transfer, std::move(packed)});
      }
    } else if (transfer.destination == task_.rank) {
      Buffer bytes_in;
      if (transfer.source == kCaller) {
        ANNULUS_ASSIGN_OR_RETURN(bytes_in, FromCaller(bytes));
      } else if (wire_memory == MemoryKind::kHost) {
        bytes_in = Buffer(bytes);
      } else {
        ANNULUS_ASSIGN_OR_RETURN(bytes_in, space_.Allocate(bytes));
      }
      in_.push_back({&transfer, std::move(bytes_in)});
    }
  }
  return absl::OkStatus();
}

absl::Status RankRun::Accept(Flight flight) {
  const Transfer& transfer = *flight.transfer;
  const bool from_caller = transfer.source == kCaller;
  ANNULUS_ASSIGN_OR_RETURN(
      Buffer bytes, MoveFrom(from_caller ? MemoryKind::kHost : exchange_.capabilities().memory,
                             std::move(flight.bytes)));
  if (transfer.kind == Transfer::Kind::kKv) {
    kv_.Receive(transfer, std::move(bytes));
    return absl::OkStatus();
  }
  const Rows rows(transfer.blocks, problem_.q_range());
  if (transfer.kind == Transfer::Kind::kQuery) {
    return tiles_.SpreadQueries(rows, transfer.heads,
                                TensorView::Contiguous(bytes.data(), problem_.dtype, rows.count(),
                                                       transfer.heads.count, problem_.head_dim));
  }
  return tiles_.MergeArrived(
      rows, transfer.heads,
      PartialIn(bytes.data(), rows.count(), transfer.heads.count, problem_.v_head_dim));
}

absl::Status RankRun::Launch(const Compute& compute) {
  const Rows rows(compute.q_blocks, problem_.q_range());
  if (rows.count() == 0 || compute.heads.count == 0) return absl::OkStatus();
  ANNULUS_ASSIGN_OR_RETURN(const Tile* tile, tiles_.ForCompute(rows, compute.heads));
  AttendArgs args;
  args.q = tile->q;
  args.q_ranges = rows.ranges();
  args.heads = compute.heads;
  args.kv_tokens = problem_.keys().end;
  args.group = problem_.group();
  args.kv = &kv_.table();
  args.pattern = &problem_.pattern;
  args.keys = &compute.kv_blocks;
  args.scale = task_.scale;
  args.into = tile->partial.view;
  args.memory = space_.kind();
  args.cancel = task_.cancel;
  args.turn = task_.turn;
  return backend_.Attend(args);
}

absl::Status RankRun::WaitFor(Exchange::Ticket ticket) {
  while (true) {
    const absl::Time slice = std::min(task_.deadline, absl::Now() + kCancelPeriod);
    const absl::Status status = exchange_.Wait(ticket, slice);
    if (!absl::IsDeadlineExceeded(status)) return status;
    if (task_.cancel != nullptr && task_.cancel->load()) {
      return absl::CancelledError("the request was cancelled");
    }
    if (absl::Now() >= task_.deadline) return status;
  }
}

absl::Status RankRun::RunRound(const Round& round, int index) {
  if (absl::Now() >= task_.deadline) {
    return absl::DeadlineExceededError(absl::StrCat("deadline passed before round ", index));
  }
  kv_.BeginRound(index);
  ANNULUS_RETURN_IF_ERROR(StartTransfers(round));
  std::vector<SendOp> sends;
  std::vector<RecvOp> receives;
  for (const Flight& flight : out_) {
    sends.push_back({flight.transfer->destination, flight.bytes.data(), flight.bytes.size()});
  }
  for (Flight& flight : in_) {
    if (flight.transfer->source == kCaller) continue;
    receives.push_back({flight.transfer->source, flight.bytes.data(), flight.bytes.size()});
  }
  const bool moves = !sends.empty() || !receives.empty();
  Exchange::Ticket ticket = 0;
  if (moves) {
    ANNULUS_ASSIGN_OR_RETURN(ticket, exchange_.Post(sends, receives));
  }
  for (const Compute& compute : round.computes) {
    if (compute.rank != task_.rank) continue;
    const absl::Time begin = absl::Now();
    ANNULUS_RETURN_IF_ERROR(Launch(compute));
    round_compute_s_[static_cast<size_t>(index)] += absl::ToDoubleSeconds(absl::Now() - begin);
    Trace(absl::StrCat("round ", index, " attend"), begin);
  }
  if (moves) {
    const absl::Time begin = absl::Now();
    ANNULUS_RETURN_IF_ERROR(WaitFor(ticket));
    wait_s_ += absl::ToDoubleSeconds(absl::Now() - begin);
    Trace(absl::StrCat("round ", index, " wait for transfers"), begin);
  }
  if (round.drop_received_kv) kv_.DropReceived(index);
  for (Flight& flight : in_) ANNULUS_RETURN_IF_ERROR(Accept(std::move(flight)));
  out_.clear();
  in_.clear();
  return absl::OkStatus();
}

absl::StatusOr<RankResult> RankRun::Run() {
  const Exchange::Counters before = exchange_.counters();
  ANNULUS_RETURN_IF_ERROR(Prepare());
  int index = 0;
  for (const Round& round : plan_.rounds()) ANNULUS_RETURN_IF_ERROR(RunRound(round, index++));
  if (caller_offset_ != task_.q_packed.size()) {
    return absl::InternalError(absl::StrCat("the caller gave rank ", task_.rank, " ",
                                            task_.q_packed.size(), " bytes, the plan used ",
                                            caller_offset_));
  }
  RankResult result;
  if (problem_.home == Home::kOwners) {
    ANNULUS_ASSIGN_OR_RETURN(result.home, std::move(tiles_).TakeHome());
    ANNULUS_ASSIGN_OR_RETURN(result.overflow, space_.EndRows(result.home.view));
    if (result.overflow.has_value()) {
      const Rows rows(plan_.HomeRows(task_.rank), problem_.q_range());
      result.overflow->row = rows.Position(result.overflow->row) - problem_.q_range().begin;
    }
  }
  result.answer_packed = for_caller_.size() == 1 ? for_caller_[0] : Join(for_caller_);
  const Exchange::Counters after = exchange_.counters();
  result.bytes_sent = static_cast<int64_t>(after.bytes_sent - before.bytes_sent) + caller_bytes_;
  result.bytes_received = static_cast<int64_t>(after.bytes_received - before.bytes_received) +
                          static_cast<int64_t>(caller_offset_);
  result.compute_s = std::accumulate(round_compute_s_.begin(), round_compute_s_.end(), 0.0);
  result.round_compute_s = std::move(round_compute_s_);
  result.wait_s = wait_s_;
  return result;
}

}  // namespace

absl::StatusOr<RankResult> RunRank(const RankTask& task, Backend& backend, Exchange& exchange) {
  RankRun run(task, backend, exchange);
  absl::StatusOr<RankResult> result = run.Run();
  // A run that fails has operations in flight, in its own memory: they end before it does.
  if (!result.ok()) exchange.Abort(result.status());
  return result;
}

}  // namespace annulus
