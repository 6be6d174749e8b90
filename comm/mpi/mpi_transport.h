// Internal to comm/mpi: MPI under one lock, with a thread that moves what is there to move, and the
// links to other ranks. A message is a head, then its data as a second message: the receiver reads
// heads as they come and posts each one's receive where the data belongs, so that MPI matches them
// in order and nothing is received that has no place.
// Everything here but Lock, WakeIfAsleep and what says so needs the lock held; callbacks run with
// it held and must not block.
#pragma once

#include <mpi.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "annulus/buffer.h"
#include "comm/mpi/mpi_session.h"
#include "comm/piece_exchange.h"
#include "comm/piece_transport.h"

namespace annulus {

// UNAVAILABLE with what MPI says of `code`, unless it is MPI_SUCCESS.
absl::Status MpiError(const char* call, int code);

class MpiTransport;

class MpiLink final : public PieceLink {
 public:
  MpiLink(MpiTransport& transport, int peer) : transport_(transport), peer_(peer) {}

  void Send(Piece piece) override;
  void DropUnsent(const void* owner) override;
  void Pump();

 private:
  MpiTransport& transport_;
  const int peer_;
  std::deque<Piece> queue_;
  size_t in_flight_bytes_ = 0;
};

class MpiTransport final : public PieceTransport {
 public:
  // Without the lock: MPI is up, but nothing moves before StartThread, which is called once.
  static absl::StatusOr<std::unique_ptr<MpiTransport>> Create(const MpiOptions& options);
  ~MpiTransport() override;
  // `on_text` takes what SendText sends.
  using TextReceiver = std::function<void(absl::string_view text)>;
  void StartThread(TextReceiver on_text);

  // Constant.
  int rank() const { return rank_; }
  int world() const { return static_cast<int>(links_.size()); }

  size_t piece_bytes_max() const override { return options_.piece_bytes; }
  [[nodiscard]] std::unique_lock<FairLock> Lock() override {
    return std::unique_lock<FairLock>(lock_);
  }
  void WakeIfAsleep() override;

  PieceHub& hub() { return hub_; }
  const std::shared_ptr<MpiLink>& link(int peer) const { return links_[static_cast<size_t>(peer)]; }
  // Why nothing moves any more, once MPI has failed.
  const absl::Status& status() const { return broken_; }
  void SendText(int peer, absl::string_view text);

 private:
  friend class MpiLink;

  // A request that MPI has, what it needs alive, and what follows it.
  struct Operation {
    std::string head;
    Buffer scratch;
    std::function<void()> done;
  };

  MpiTransport(const MpiOptions& options, MPI_Comm comm, int rank, int world);
  void SendHead(int peer, std::string head);
  void SendBody(int peer, const void* data, size_t size_bytes, std::function<void()> done);
  int Progress();
  int ReadHeads();
  void OnHead(int source, absl::string_view head);
  void ReceiveBody(int source, const PieceHeader& header, size_t size_bytes);
  int FinishOperations();
  void Keep(MPI_Request request, std::unique_ptr<Operation> operation);
  void Fail(const absl::Status& why);
  void Run();
  void AwaitIdle();

  const MpiOptions options_;
  const MPI_Comm comm_;
  const int rank_;
  FairLock lock_;
  PieceHub hub_;
  std::vector<std::shared_ptr<MpiLink>> links_;  // by rank
  TextReceiver on_text_;
  absl::Status broken_;                                 // by an error of MPI's
  std::vector<MPI_Request> requests_;                   // in flight
  std::vector<std::unique_ptr<Operation>> operations_;  // of requests_
  std::vector<int> finished_;                           // indices, while FinishOperations runs

  std::mutex nap_mutex_;
  std::condition_variable nap_changed_;
  bool woken_ = false;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace annulus
