// Internal to comm/ucx: one UCX worker under one lock, and the links to other workers. The
// messenger and the exchanges of a fabric share it. Everything here but Lock, Wait and Wake needs
// the lock held; callbacks (receivers, done, on_down) run with it held and must not block.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "annulus/buffer.h"
#include "comm/drop_log.h"
#include "comm/piece_transport.h"
#include "comm/ucx/ucx_handles.h"

namespace annulus {

// Large payloads travel in pieces of this size, so that a heartbeat never waits for long and no
// side needs memory of UCX's for more than a window of them. With the longest header a piece fits
// one segment of UCX's tcp (64 KiB): larger ones it puts together on the other side in memory of
// its own, which takes a third longer.
inline constexpr size_t kUcxChunkBytes = 56 * 1024;

// Of a message's body that goes in an active message's header, and of all of that header: UCX
// bounds it.
inline constexpr size_t kUcxBodyBytesMax = 4096;
inline constexpr size_t kUcxHeaderBytesMax = kUcxBodyBytesMax + 512;

// What the active messages mean; each kind has a header struct of its own.
enum class UcxAm : unsigned { kFabric = 0, kMessenger = 1, kExchange = 2 };

struct UcxSend {
  UcxAm am = UcxAm::kMessenger;
  std::string header;  // fixed struct, then its text
  const void* data = nullptr;
  size_t size_bytes = 0;
  Buffer keep;                          // owns `data`; empty: borrowed, copied as UCX takes it
  const void* owner = nullptr;          // for DropUnsent
  std::function<void(bool sent)> done;  // borrowed data is not touched any more; may be empty
};

// A struct's bytes as the beginning of a header.
template <typename T>
std::string UcxHeader(const T& fields, absl::string_view text = {}) {
  std::string header(reinterpret_cast<const char*>(&fields), sizeof fields);
  header.append(text.data(), text.size());
  return header;
}

class UcxTransport;

// An endpoint with its queue. It is wired up (flushed) before its first active message, and closed
// only when UCX has nothing of it in flight or has given it up: UCX 1.13 crashes, or goes deaf,
// after closing an endpoint in the middle of a send.
class UcxLink final : public PieceLink, public std::enable_shared_from_this<UcxLink> {
 public:
  UcxLink(UcxTransport& transport, UcxAddress remote);

  const UcxAddress& remote() const { return remote_; }
  bool down() const { return state_ == State::kDown; }
  size_t unsent_bytes() const { return unsent_bytes_; }
  // Whether UCX has taken all that there was to send.
  bool idle() const { return queue_.empty() && in_flight_ == 0; }

  // Called once, when the link fails by itself; never by Close.
  std::function<void(const absl::Status& why)> on_down;

  void Send(UcxSend send);
  void Send(Piece piece) override;
  // Drops what `owner` has queued and UCX has not got yet.
  void DropUnsent(const void* owner) override;
  // Says goodbye, once the link is wired; what is queued is lost.
  void Close(UcxAm am, std::string goodbye);
  // The other side has said goodbye.
  void Leave(const absl::Status& why);

 private:
  friend class UcxTransport;
  enum class State { kWiring, kUp, kClosing, kDown };
  struct Request {
    std::shared_ptr<UcxLink> link;
    UcxSend send;
  };

  // In a callback of UCX's.
  template <typename Do>
  void Act(const Do& act) noexcept {
    if (!Guarded(act)) broken_ = true;
  }

  void Open();
  void Wired(ucs_status_t status);
  void Pump();
  void SayGoodbye();
  void Issue(UcxSend send);
  void Complete(const UcxSend& send, ucs_status_t status);
  void GiveUp(absl::Status why);  // after UCX's own progress
  void Fail(const absl::Status& why);
  void DropQueue();
  void CloseEndpoint();

  UcxTransport& transport_;
  const UcxAddress remote_;
  State state_ = State::kWiring;
  ucp_ep_h endpoint_ = nullptr;
  std::deque<UcxSend> queue_;
  size_t unsent_bytes_ = 0;     // queued and in flight
  size_t in_flight_bytes_ = 0;  // with UCX
  int in_flight_ = 0;           // sends and the flush
  bool broken_ = false;         // for want of memory in a callback: fails at the next progress
};

class UcxTransport : public PieceTransport {
 public:
  using Receiver =
      std::function<void(absl::Span<const std::byte> header, absl::Span<const std::byte> data)>;

  static absl::StatusOr<std::unique_ptr<UcxTransport>> Create(const UcxOptions& options);
  ~UcxTransport() override;

  const UcxOptions& options() const { return options_; }
  const UcxAddress& address() const { return address_; }
  size_t piece_bytes_max() const override { return kUcxChunkBytes; }
  [[nodiscard]] std::unique_lock<FairLock> Lock() override {
    return std::unique_lock<FairLock>(lock_);
  }

  void SetReceiver(UcxAm am, Receiver receiver);
  std::shared_ptr<UcxLink> Connect(UcxAddress remote);

  // Links whose endpoints are being opened or closed.
  size_t half_open() const { return half_open_ + opening_.size(); }

  // Moves everything that can move; returns how much UCX did.
  unsigned Progress();

  // Without the lock: progresses until `ready` (called with it), Wake, or the end of `wait`.
  void Wait(absl::Duration wait, const std::function<bool()>& ready);
  // Without the lock, or with it.
  void Wake();
  // The waiting thread may be asleep while another one gave UCX work.
  void WakeIfAsleep() override;

 private:
  friend class UcxLink;
  struct Failure {
    std::shared_ptr<UcxLink> link;
    absl::Status why;
  };

  struct Slot {
    UcxTransport* transport = nullptr;
    Receiver receive;
  };

  UcxTransport(const UcxOptions& options, UcxContext context, UcxWorker worker);
  absl::Status Init();
  void OnFabricMessage(absl::Span<const std::byte> header);
  void Sleep(absl::Time until);

  const UcxOptions options_;
  FairLock lock_;
  UcxContext context_;
  UcxWorker worker_;
  UcxAddress address_;
  LinkKey farewell_;  // see UcxIdentityOf
  std::array<Slot, 3> receivers_;
  uint64_t lost_ = 0;  // active messages that there was no memory for, until Progress tells
  DropLog drops_;
  std::set<std::shared_ptr<UcxLink>> links_;  // until their endpoints are closed
  // Inside its progress, that is in all its callbacks, UCX must not be asked to open, to close or
  // to send: it asserts, or uses a socket that has changed hands. What they want waits here.
  bool in_progress_ = false;
  std::vector<std::shared_ptr<UcxLink>> opening_;
  std::set<std::shared_ptr<UcxLink>> pumping_;
  std::vector<Failure> failures_;
  size_t half_open_ = 0;  // as Progress saw it last
  int closes_in_flight_ = 0;
  int sends_in_flight_ = 0;

  int event_fd_ = -1;  // UCX's
  int wake_fd_ = -1;   // ours
  std::atomic<bool> woken_{false};
  std::atomic<bool> asleep_{false};
  absl::Duration nap_ = absl::Microseconds(20);  // the waiting thread's
};

}  // namespace annulus
