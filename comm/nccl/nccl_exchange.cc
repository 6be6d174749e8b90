#include "comm/nccl/nccl_exchange.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/cuda/handles.h"
#include "base/status.h"
#include "comm/exchange_checks.h"
#include "comm/nccl/communicator.h"
#include "comm/nccl/size_agreement.h"
#include "comm/tickets.h"

namespace annulus {
namespace {

using cuda::StatusOf;

// How often a wait asks the control exchange whether the others are there.
constexpr absl::Duration kControlPeriod = absl::Milliseconds(2);
constexpr absl::Duration kFinishTimeout = absl::Seconds(2);
// How long Post waits for a group to begin.
constexpr absl::Duration kBeginLimit = absl::Milliseconds(2);

class NcclExchange final : public Exchange {
 public:
  explicit NcclExchange(std::unique_ptr<Exchange> control) : control_(std::move(control)) {}
  ~NcclExchange() override;

  absl::Status Open(absl::Time deadline);

  const Capabilities& capabilities() const override { return capabilities_; }
  int rank() const override { return control_->rank(); }
  int world() const override { return control_->world(); }
  absl::StatusOr<Ticket> Post(absl::Span<const SendOp> sends,
                              absl::Span<const RecvOp> receives) override;
  absl::Status Wait(Ticket ticket, absl::Time deadline) override;
  void Abort(absl::Status why) override;
  Counters counters() const override { return {bytes_sent_.load(), bytes_received_.load()}; }

 private:
  struct Group {
    Ticket ticket = 0;
    std::vector<SendOp> sends;
    std::vector<RecvOp> receives;
  };

  void Run();
  absl::Status Move(const Group& group, absl::Status* mismatch);
  absl::Status Launch(const Group& group, const SizesByPeer& theirs, absl::Status* mismatch);
  absl::Status AwaitDevice();
  absl::Status KeepOn();
  absl::Status WaitForControl(Ticket ticket);
  absl::StatusOr<std::string> ShareId(absl::Time deadline);
  void FailAll(const absl::Status& why);
  void Begun(Ticket ticket);

  const Capabilities capabilities_{"nccl", MemoryKind::kDevice, /*groups_in_order=*/true};
  const std::unique_ptr<Exchange> control_;
  int device_ = 0;
  cuda::Stream stream_;
  cuda::Event done_;
  absl::Time asked_ = absl::InfinitePast();  // the control exchange, last; of thread_
  Communicator communicator_;                // of thread_, once it runs
  std::atomic<uint64_t> bytes_sent_{0};
  std::atomic<uint64_t> bytes_received_{0};

  std::mutex mutex_;  // the rest
  std::condition_variable changed_;
  std::deque<Group> queue_;
  TicketBook book_;
  Ticket begun_ = 0;     // the last group whose kernel is queued on the device, or that is over
  absl::Status failed_;  // why nothing moves any more
  bool quiet_ = true;    // thread_ touches no operation's memory
  bool stop_ = false;
  std::thread thread_;
};

// Rank 0's id reaches the others over the control exchange.
absl::StatusOr<std::string> NcclExchange::ShareId(absl::Time deadline) {
  std::string id;
  std::vector<SendOp> sends;
  std::vector<RecvOp> receives;
  if (rank() == 0) {
    ANNULUS_ASSIGN_OR_RETURN(id, Communicator::MakeId());
    for (int peer = 1; peer < world(); ++peer) sends.push_back({peer, id.data(), id.size()});
  } else {
    id.resize(sizeof(ncclUniqueId));
    receives.push_back({0, id.data(), id.size()});
  }
  ANNULUS_ASSIGN_OR_RETURN(const Ticket ticket, control_->Post(sends, receives));
  const absl::Status shared = control_->Wait(ticket, deadline);
  if (shared.ok()) return id;
  control_->Abort(shared);  // before the id's memory goes
  return shared;
}

absl::Status NcclExchange::Open(absl::Time deadline) {
  ANNULUS_RETURN_IF_ERROR(StatusOf(cudaGetDevice(&device_), "cudaGetDevice"));
  // Attention's kernels fill the GPU. Transfers that waited for the end of one would wait on every
  // GPU, and those that have begun would keep multiprocessors busy until their peers begin too.
  ANNULUS_ASSIGN_OR_RETURN(stream_, cuda::MakeStream(/*urgent=*/true));
  ANNULUS_ASSIGN_OR_RETURN(done_, cuda::MakeEvent());
  ANNULUS_ASSIGN_OR_RETURN(const std::string id, ShareId(deadline));
  ANNULUS_ASSIGN_OR_RETURN(
      communicator_, Communicator::Open(id, rank(), world(), [&]() -> absl::Status {
        if (absl::Now() < deadline) return KeepOn();
        return absl::DeadlineExceededError("not all ranks opened the exchange in time");
      }));
  thread_ = std::thread([this] { Run(); });
  return absl::OkStatus();
}

NcclExchange::~NcclExchange() {
  if (!thread_.joinable()) return;
  bool in_flight = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    in_flight = !book_.unfinished().empty();
  }
  if (in_flight) Abort(absl::CancelledError("the exchange ended with operations in flight"));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

absl::StatusOr<Exchange::Ticket> NcclExchange::Post(absl::Span<const SendOp> sends,
                                                    absl::Span<const RecvOp> receives) {
  ANNULUS_RETURN_IF_ERROR(CheckOps(sends, receives, world()));
  Ticket ticket = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ANNULUS_RETURN_IF_ERROR(failed_);
    ticket = book_.Open(1);  // a group is one operation here
    queue_.push_back({ticket, {sends.begin(), sends.end()}, {receives.begin(), receives.end()}});
  }
  changed_.notify_all();
  // A kernel of attention that came first would keep this group's from the device until it ends,
  // and the peers' waiting there meanwhile.
  const absl::Time until = absl::Now() + kBeginLimit;
  std::unique_lock<std::mutex> lock(mutex_);
  while (begun_ < ticket && failed_.ok() && absl::Now() < until) {
    changed_.wait_for(lock, absl::ToChronoMicroseconds(until - absl::Now()));
  }
  return ticket;
}

void NcclExchange::Begun(Ticket ticket) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    begun_ = ticket;
  }
  changed_.notify_all();
}

absl::Status NcclExchange::Wait(Ticket ticket, absl::Time deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  return book_.Wait(ticket, deadline, lock, changed_);
}

void NcclExchange::Abort(absl::Status why) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!failed_.ok()) return;
    failed_ = why;
  }
  changed_.notify_all();
  control_->Abort(std::move(why));
  // The thread gives up what is under way, within some naps.
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return quiet_ && book_.unfinished().empty(); });
}

void NcclExchange::Run() {
  absl::Status status = StatusOf(cudaSetDevice(device_), "cudaSetDevice");
  while (status.ok()) {
    Group group;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return stop_ || !queue_.empty() || !failed_.ok(); });
      if (!failed_.ok()) status = failed_;
      if (queue_.empty() || !status.ok()) break;
      group = std::move(queue_.front());
      queue_.pop_front();
      quiet_ = false;
    }
    absl::Status mismatch;
    status = Move(group, &mismatch);
    if (!status.ok()) break;
    const std::lock_guard<std::mutex> lock(mutex_);
    quiet_ = true;
    if (!mismatch.ok()) book_.Fail(group.ticket, mismatch);
    book_.Finish(group.ticket);
    changed_.notify_all();
  }
  if (status.ok()) {
    const absl::Time give_up = absl::Now() + kFinishTimeout;
    communicator_.Finish([&]() -> absl::Status {
      return absl::Now() < give_up ? KeepOn() : absl::DeadlineExceededError("ncclCommFinalize");
    });
  }
  communicator_ = Communicator();  // gives up what is under way on the device
  cudaStreamSynchronize(stream_.get());
  if (!status.ok()) FailAll(status);
}

void NcclExchange::FailAll(const absl::Status& why) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (failed_.ok()) failed_ = why;
  }
  control_->Abort(why);  // nothing new to those who know
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const Ticket ticket : book_.unfinished()) {
    book_.Fail(ticket, failed_);
    book_.Finish(ticket);
  }
  queue_.clear();
  quiet_ = true;
  changed_.notify_all();
}

// OK unless this exchange was aborted, here or elsewhere, or somebody is gone.
absl::Status NcclExchange::KeepOn() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ANNULUS_RETURN_IF_ERROR(failed_);
  }
  const absl::Time now = absl::Now();
  if (now - asked_ < kControlPeriod) return absl::OkStatus();
  asked_ = now;
  ANNULUS_ASSIGN_OR_RETURN(const Ticket nothing, control_->Post({}, {}));
  return control_->Wait(nothing, absl::InfiniteFuture());
}

absl::Status NcclExchange::WaitForControl(Ticket ticket) {
  while (true) {
    const absl::Status status = control_->Wait(ticket, absl::Now() + kControlPeriod);
    if (!absl::IsDeadlineExceeded(status)) return status;
    const absl::Status keep_on = KeepOn();
    if (keep_on.ok()) continue;
    control_->Abort(keep_on);  // before the memory of what is under way goes
    return keep_on;
  }
}

absl::Status NcclExchange::Move(const Group& group, absl::Status* mismatch) {
  const SizesByPeer mine = SizesOf(group.sends, group.receives);
  ANNULUS_ASSIGN_OR_RETURN(SizesByPeer theirs, Agree(*control_, mine, [this](Ticket ticket) {
                             return WaitForControl(ticket);
                           }));
  // What a rank sends itself is agreed at once.
  if (const auto self = mine.find(rank()); self != mine.end()) {
    if (self->second.sends.size() != self->second.receives.size()) {
      return absl::InternalError(absl::StrCat("in one group rank ", rank(), " posts ",
                                              self->second.sends.size(), " sends to itself and ",
                                              self->second.receives.size(), " receives"));
    }
    theirs[rank()] = self->second;
  }
  ANNULUS_RETURN_IF_ERROR(Launch(group, theirs, mismatch));
  Begun(group.ticket);
  return AwaitDevice();
}

absl::Status NcclExchange::Launch(const Group& group, const SizesByPeer& theirs,
                                  absl::Status* mismatch) {
  std::map<int, size_t> sent, received;  // so far, by peer
  std::vector<const SendOp*> to_self;
  bool moves = false;
  const auto start = [&] {
    return moves ? absl::OkStatus() : NcclError(ncclGroupStart(), "ncclGroupStart");
  };
  for (const SendOp& op : group.sends) {
    const uint64_t expected = theirs.at(op.peer).receives[sent[op.peer]++];
    if (expected != op.size_bytes) {
      mismatch->Update(SizeMismatch(rank(), op.size_bytes, op.peer, expected));
      if (op.peer == rank()) to_self.push_back(nullptr);
      continue;
    }
    if (op.peer == rank()) to_self.push_back(&op);
    if (op.size_bytes == 0 || op.peer == rank()) continue;
    ANNULUS_RETURN_IF_ERROR(start());
    moves = true;
    ANNULUS_RETURN_IF_ERROR(NcclError(
        ncclSend(op.data, op.size_bytes, ncclUint8, op.peer, communicator_.get(), stream_.get()),
        absl::StrCat("ncclSend(", op.size_bytes, " bytes)")));
    bytes_sent_ += op.size_bytes;
  }
  for (const RecvOp& op : group.receives) {
    const size_t index = received[op.peer]++;
    const uint64_t expected = theirs.at(op.peer).sends[index];
    if (expected != op.size_bytes) {
      mismatch->Update(SizeMismatch(op.peer, expected, rank(), op.size_bytes));
      continue;
    }
    if (op.size_bytes == 0) continue;
    if (op.peer == rank()) {
      ANNULUS_RETURN_IF_ERROR(
          StatusOf(cudaMemcpyAsync(op.data, to_self[index]->data, op.size_bytes,
                                   cudaMemcpyDeviceToDevice, stream_.get()),
                   absl::StrCat("cudaMemcpyAsync(", op.size_bytes, " bytes to itself)")));
      continue;
    }
    ANNULUS_RETURN_IF_ERROR(start());
    moves = true;
    ANNULUS_RETURN_IF_ERROR(NcclError(
        ncclRecv(op.data, op.size_bytes, ncclUint8, op.peer, communicator_.get(), stream_.get()),
        absl::StrCat("ncclRecv(", op.size_bytes, " bytes)")));
    bytes_received_ += op.size_bytes;
  }
  if (!moves) return absl::OkStatus();
  ANNULUS_RETURN_IF_ERROR(NcclError(ncclGroupEnd(), "ncclGroupEnd"));
  return communicator_.WaitUntilBegun("ncclGroupEnd", [this] { return KeepOn(); });
}

absl::Status NcclExchange::AwaitDevice() {
  ANNULUS_RETURN_IF_ERROR(StatusOf(cudaEventRecord(done_.get(), stream_.get()), "cudaEventRecord"));
  const Glances glances;
  while (true) {
    const cudaError_t state = cudaEventQuery(done_.get());
    if (state != cudaErrorNotReady) return StatusOf(state, "an exchange's transfers");
    ANNULUS_RETURN_IF_ERROR(KeepOn());
    ANNULUS_RETURN_IF_ERROR(communicator_.health());
    glances.Rest();
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Exchange>> OpenNcclExchange(std::unique_ptr<Exchange> control,
                                                           absl::Time deadline) {
  auto exchange = std::make_unique<NcclExchange>(std::move(control));
  ANNULUS_RETURN_IF_ERROR(exchange->Open(deadline));
  return exchange;
}

}  // namespace annulus
