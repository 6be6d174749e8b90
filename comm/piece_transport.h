// Internal to comm: what a transport of messages (ucx, mpi) gives to the exchanges over it, which
// share one protocol (piece_exchange.h), and what they give to it: operations cut into pieces.
// Thread rule: everything but Lock and WakeIfAsleep needs the lock held; `done` runs with it held
// and must not block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "comm/fair_lock.h"

namespace annulus {

struct PieceHeader {
  enum Kind : uint32_t {
    kReady,     // a receive is posted: `size_bytes` are expected
    kData,      // a piece of a send
    kMismatch,  // the send that a receive is paired with has `size_bytes`
    kAbort,     // the text says why
  };

  uint64_t channel = 0;
  uint64_t sequence = 0;  // of the pair, from its source to its destination
  uint64_t offset = 0;
  uint64_t size_bytes = 0;
  uint32_t rank = 0;  // that sends this
  uint32_t kind = kReady;
};

struct Piece {
  PieceHeader header;
  std::string text;
  const std::byte* data = nullptr;  // borrowed until done
  size_t size_bytes = 0;
  const void* owner = nullptr;          // for DropUnsent
  std::function<void(bool sent)> done;  // `data` is not touched any more; may be empty
};

// The way to one peer.
class PieceLink {
 public:
  virtual ~PieceLink() = default;

  // Pieces arrive once and in this order, or the link goes down.
  virtual void Send(Piece piece) = 0;
  // Drops what `owner` has queued and has not left yet.
  virtual void DropUnsent(const void* owner) = 0;
};

class PieceTransport {
 public:
  virtual ~PieceTransport() = default;

  // The size of all pieces of a send but its last. The same for all members of an exchange.
  virtual size_t piece_bytes_max() const = 0;
  [[nodiscard]] virtual std::unique_lock<FairLock> Lock() = 0;
  // There is something to be sent: the thread that moves it may be asleep.
  virtual void WakeIfAsleep() = 0;
};

}  // namespace annulus
