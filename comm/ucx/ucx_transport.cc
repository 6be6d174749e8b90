#include "comm/ucx/ucx_transport.h"

#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/time/clock.h"
#include "base/check.h"
#include "base/status.h"

namespace annulus {
namespace {

// Of UcxAm::kFabric: the fabric that knows this secret is closing.
struct GoneHeader {
  LinkKey farewell;
};

// How long the end of a fabric waits for peers to take the goodbyes.
constexpr absl::Duration kGoodbyeTime = absl::Milliseconds(200);

// Shared memory has no event for room in the receiver's queue, so a Wait with sends in flight looks
// again after a nap, a longer one each time that nothing has moved.
constexpr absl::Duration kNapMin = absl::Microseconds(20);
constexpr absl::Duration kNapMax = absl::Milliseconds(2);

// UCX's table of handlers has room for more kinds of message than were asked for, and it leaves
// what stands there as malloc gave it: it would call that for a message of such a kind. So each
// kind that a message can name gets a handler, the last one first, for which the table has to be
// whole.
void IgnoreMessages(ucp_worker_h worker) {
  ucp_am_handler_param_t param = {};
  param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB;
  param.cb = [](void*, const void*, size_t, void*, size_t, const ucp_am_recv_param_t*) {
    return UCS_OK;
  };
  for (int id = UINT16_MAX; id >= 0; --id) {
    param.id = static_cast<unsigned>(id);
    ANNULUS_CHECK(ucp_worker_set_am_recv_handler(worker, &param) == UCS_OK);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<UcxTransport>> UcxTransport::Create(const UcxOptions& options) {
  ANNULUS_ASSIGN_OR_RETURN(UcxContext context, MakeUcxContext(options));
  ANNULUS_ASSIGN_OR_RETURN(UcxWorker worker, MakeUcxWorker(context.get(), options));
  std::unique_ptr<UcxTransport> transport(
      new UcxTransport(options, std::move(context), std::move(worker)));
  ANNULUS_RETURN_IF_ERROR(transport->Init());
  return transport;
}

UcxTransport::UcxTransport(const UcxOptions& options, UcxContext context, UcxWorker worker)
    : options_(options), context_(std::move(context)), worker_(std::move(worker)) {}

absl::Status UcxTransport::Init() {
  farewell_ = LinkKey::Random();
  address_.fabric = UcxIdentityOf(farewell_);
  ANNULUS_ASSIGN_OR_RETURN(address_.worker, UcxWorkerAddress(worker_.get()));
  const ucs_status_t status = ucp_worker_get_efd(worker_.get(), &event_fd_);
  if (status != UCS_OK) return UcxError("these transports cannot wake a sleeper", status);
  wake_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (wake_fd_ < 0) return absl::UnavailableError("no file descriptor for an eventfd");

  ucp_worker_attr_t attributes = {};
  attributes.field_mask = UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER;
  ucp_worker_query(worker_.get(), &attributes);
  if (attributes.max_am_header < kUcxHeaderBytesMax) {
    return absl::UnavailableError("UCX: these transports' headers are too small");
  }
  IgnoreMessages(worker_.get());
  SetReceiver(UcxAm::kFabric, [this](absl::Span<const std::byte> header,
                                     absl::Span<const std::byte>) { OnFabricMessage(header); });
  return absl::OkStatus();
}

UcxTransport::~UcxTransport() {
  const std::unique_lock<FairLock> lock = Lock();
  // Those who listened are gone already.
  for (Slot& slot : receivers_) slot.receive = [](auto, auto) {};
  for (const auto& link : std::set<std::shared_ptr<UcxLink>>(links_)) {
    link->Close(UcxAm::kFabric, UcxHeader(GoneHeader{farewell_}));
  }
  const absl::Time patience = absl::Now() + kGoodbyeTime;
  // Also those endpoints that UCX opened by itself, to answer who connects.
  while (!links_.empty() || closes_in_flight_ > 0 || sends_in_flight_ > 0 ||
         UcxEndpoints(context_.get(), worker_.get()) != 0) {
    if (Progress() == 0) absl::SleepFor(absl::Microseconds(50));
    if (absl::Now() < patience) continue;
    // A peer hangs with bytes of ours or of UCX's on the way: to leave the worker to the end of the
    // process is safe, to destroy it is not.
    (void)worker_.release();
    (void)context_.release();
    break;
  }
  if (wake_fd_ >= 0) close(wake_fd_);
}

void UcxTransport::SetReceiver(UcxAm am, Receiver receiver) {
  Slot& slot = receivers_[static_cast<size_t>(am)];
  slot = {this, std::move(receiver)};
  ucp_am_handler_param_t param = {};
  param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                     UCP_AM_HANDLER_PARAM_FIELD_ARG;
  param.id = static_cast<unsigned>(am);
  param.arg = &slot;
  param.cb = [](void* arg, const void* header, size_t header_bytes, void* data, size_t data_bytes,
                const ucp_am_recv_param_t* info) {
    // Nobody sends by UCX's rendezvous: what does is dropped.
    if (info->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) return UCS_OK;
    const auto& slot = *static_cast<Slot*>(arg);
    const bool taken = Guarded([&] {
      slot.receive({static_cast<const std::byte*>(header), header_bytes},
                   {static_cast<const std::byte*>(data), data_bytes});
    });
    // It is lost like one that never came: whoever waits for it sees that by the time.
    if (!taken) ++slot.transport->lost_;
    return UCS_OK;
  };
  ANNULUS_CHECK(ucp_worker_set_am_recv_handler(worker_.get(), &param) == UCS_OK);
}

std::shared_ptr<UcxLink> UcxTransport::Connect(UcxAddress remote) {
  auto link = std::make_shared<UcxLink>(*this, std::move(remote));
  links_.insert(link);
  opening_.push_back(link);
  return link;
}

void UcxTransport::OnFabricMessage(absl::Span<const std::byte> header) {
  GoneHeader gone;
  if (header.size() < sizeof gone) return;
  std::memcpy(&gone, header.data(), sizeof gone);
  const uint64_t fabric = UcxIdentityOf(gone.farewell);
  for (const std::shared_ptr<UcxLink>& link : links_) {
    if (link->remote().fabric == fabric) {
      link->Leave(absl::UnavailableError("the peer closed its fabric"));
    }
  }
}

unsigned UcxTransport::Progress() {
  in_progress_ = true;
  const unsigned count = ucp_worker_progress(worker_.get());
  in_progress_ = false;
  for (const auto& link : std::exchange(opening_, {})) link->Open();
  for (const auto& link : std::exchange(pumping_, {})) link->Pump();
  while (!failures_.empty()) {
    std::vector<Failure> failures = std::exchange(failures_, {});
    for (const Failure& failure : failures) failure.link->Fail(failure.why);
  }
  if (const uint64_t lost = std::exchange(lost_, 0); lost != 0) {
    drops_.Note(absl::ResourceExhaustedError("no memory for what came"));
  }
  half_open_ = 0;
  for (auto it = links_.begin(); it != links_.end();) {
    UcxLink& link = **it;
    if (link.broken_) link.Fail(absl::ResourceExhaustedError("no memory for its connection"));
    if (link.state_ == UcxLink::State::kClosing && link.in_flight_ == 0) {
      link.Fail(absl::CancelledError("closed"));
    }
    if (link.state_ != UcxLink::State::kUp) ++half_open_;
    it = link.down() ? links_.erase(it) : std::next(it);
  }
  return count;
}

void UcxTransport::Wait(absl::Duration wait, const std::function<bool()>& ready) {
  const absl::Time start = absl::Now();
  const absl::Time end = start + wait;
  absl::Time active = start;  // when something moved last
  for (;;) {
    unsigned moved;
    {
      const std::unique_lock<FairLock> lock = Lock();
      moved = Progress();
      if (ready()) return;
    }
    if (woken_.exchange(false)) return;
    const absl::Time now = absl::Now();
    if (now >= end) return;
    if (moved > 0) {
      active = now;
      nap_ = kNapMin;
    } else if (now - active >= options_.spin) {
      Sleep(end);
    } else {
      sched_yield();  // whoever is to send may wait for this core
    }
    lock_.LetOthersIn();
  }
}

void UcxTransport::Sleep(absl::Time until) {
  {
    const std::unique_lock<FairLock> lock = Lock();
    if (!opening_.empty() || !failures_.empty()) return;
    if (ucp_worker_arm(worker_.get()) != UCS_OK) return;  // something is there already
    if (sends_in_flight_ > 0) {
      until = std::min(until, absl::Now() + nap_);
      nap_ = std::min(2 * nap_, kNapMax);
    }
    asleep_.store(true);
  }
  if (!woken_.load()) {
    pollfd fds[] = {{event_fd_, POLLIN, 0}, {wake_fd_, POLLIN, 0}};
    const absl::Duration left =
        std::clamp(until - absl::Now(), absl::ZeroDuration(), absl::Seconds(10));
    const timespec timeout = absl::ToTimespec(left);
    ppoll(fds, 2, &timeout, nullptr);
  }
  asleep_.store(false);
  uint64_t count = 0;
  if (read(wake_fd_, &count, sizeof count) < 0) return;  // empty: nobody woke us
}

void UcxTransport::Wake() {
  woken_.store(true);
  WakeIfAsleep();
}

void UcxTransport::WakeIfAsleep() {
  const uint64_t one = 1;
  // A full eventfd wakes just as well.
  if (asleep_.load() && write(wake_fd_, &one, sizeof one) < 0) return;
}

}  // namespace annulus
