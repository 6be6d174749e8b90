// MpiSession: this process's place among those that mpirun or srun started together, or a world of
// one where it was started alone. It opens exchanges among these processes and is their rendezvous.
// All of MPI is behind it: errors are absl::Status, and one thread of its own moves everything, so
// that transfers proceed while the process computes, and naps while nothing moves, an eighth of the
// time that nothing has: a waiting rank takes no core.
//
// MPI has no way to lose a rank: where one is killed, the launcher ends them all. And it cannot
// take back a message that has begun: Exchange::Abort waits for the few pieces that are on the way,
// which the peers' threads take whatever their ranks do.
// Thread-safe, but for Start and the destructor: both belong to the process's main thread. The
// exchanges must be gone before the session.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "comm/exchange.h"
#include "comm/rendezvous.h"

namespace annulus {

struct MpiOptions {
  // Operations travel in messages of this size at most, so that none meets MPI's limit of 2^31.
  size_t piece_bytes = size_t{4} << 20;
};

class MpiSession {
 public:
  // Once in a process: MPI cannot be started again. UNAVAILABLE says what MPI said.
  static absl::StatusOr<std::unique_ptr<MpiSession>> Start(const MpiOptions& options = {});
  // Waits until all ranks are here.
  ~MpiSession();

  int rank() const;
  int world() const;
  // Values are kept by all ranks: for addresses, not for bulk.
  Rendezvous& rendezvous();

  // An exchange among the first `members` ranks of the world, this one among them. All pass the
  // same `channel`, which is never used twice. Members may open at different times: what arrives
  // early waits. INVALID_ARGUMENT names what makes no sense.
  absl::StatusOr<std::unique_ptr<Exchange>> OpenExchange(uint64_t channel, int members);

 private:
  class Parts;

  explicit MpiSession(std::unique_ptr<Parts> parts);

  const std::unique_ptr<Parts> parts_;
};

}  // namespace annulus
