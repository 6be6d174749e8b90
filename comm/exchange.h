// Exchange: the matched sends and receives of a plan's step among a fixed group of ranks. One of
// the three plug-in seams. It has neither handlers nor membership, so that NCCL (in streams of the
// device, without tags) and MPI implement the same contract as local (threads) and ucx (active
// messages).
//
// Contract (tests/comm/exchange_contract):
//  - the k-th send from a to b pairs with the k-th receive at b from a, over the exchange's life;
//    their sizes must be equal: a mismatch fails both tickets with INTERNAL, naming both sizes;
//  - a group's operations proceed together: any order of completion, no deadlock by order of ops;
//    rank to itself is allowed; 0 bytes are allowed and still pair;
//  - memory of an operation must live until its ticket is done and not be touched meanwhile; what
//    is sent is there when it is posted: work of a device that writes it is done;
//  - a dead peer fails the tickets that need it with UNAVAILABLE, and every later Post;
//  - an exchange destroyed with operations in flight aborts; without any, nobody is told;
//  - Post, Wait and Abort may come from any one thread at a time; Abort from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/memory_kind.h"

namespace annulus {

struct SendOp {
  int peer = 0;
  const void* data = nullptr;
  size_t size_bytes = 0;
};

struct RecvOp {
  int peer = 0;
  void* data = nullptr;
  size_t size_bytes = 0;
};

class Exchange {
 public:
  using Ticket = uint64_t;

  struct Capabilities {
    std::string name;                       // "local", "ucx", "mpi", "nccl"
    MemoryKind memory = MemoryKind::kHost;  // where the memory of operations must be
    // Groups run one after the other: what two ranks move between them in one group of the one is
    // in one group of the other, and no ranks wait for each other in a circle of groups.
    bool groups_in_order = false;
  };

  virtual ~Exchange() = default;

  virtual const Capabilities& capabilities() const = 0;
  virtual int rank() const = 0;
  virtual int world() const = 0;

  // Starts a group of operations and returns at once. INVALID_ARGUMENT for a peer outside the
  // world; the reason once the exchange has failed or was aborted.
  virtual absl::StatusOr<Ticket> Post(absl::Span<const SendOp> sends,
                                      absl::Span<const RecvOp> receives) = 0;

  // Returns when every operation of the ticket is done, or with DEADLINE_EXCEEDED at `deadline`
  // (the ticket stays in flight: Abort, or Wait again). A ticket is waited for once.
  virtual absl::Status Wait(Ticket ticket, absl::Time deadline) = 0;

  // Fails everything in flight and everything later with `why` (not OK), here and, as UNAVAILABLE,
  // at the peers. After it returns no memory of an operation is touched any more.
  virtual void Abort(absl::Status why) = 0;

  // Payload bytes handed to and taken from the transport so far; what a rank sends to itself does
  // not count. Thread-safe.
  struct Counters {
    uint64_t bytes_sent = 0;
    uint64_t bytes_received = 0;
  };
  virtual Counters counters() const = 0;
};

}  // namespace annulus
