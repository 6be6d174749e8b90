// The ranks of a benchmark: the processes that mpirun started, or this one alone. What they tell
// each other beside the plans that are measured. Calls are collective: all ranks make the same ones
// in the same order. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "comm/fabric.h"
#include "comm/mpi/mpi_session.h"
#include "comm/progress_thread.h"

namespace annulus {

// Where the ranks run.
struct Machinery {
  int nodes = 1;
  int place = 0;                // of this rank among those of its node
  int threads = 0;              // for this rank's computing, as MakeBackend takes it
  bool oversubscribed = false;  // somewhere ranks share cores: their times mean nothing
};

class Ranks {
 public:
  static absl::StatusOr<std::unique_ptr<Ranks>> Start();

  int rank() const { return session_->rank(); }
  int world() const { return session_->world(); }

  absl::Status Barrier();
  // What each rank says, by rank.
  absl::StatusOr<std::vector<std::string>> Gather(absl::string_view mine);
  absl::StatusOr<std::vector<std::vector<double>>> Gather(const std::vector<double>& mine);
  // OK if all are; else what went wrong first, the same everywhere: INVALID_ARGUMENT as it is, for
  // it is the same on all ranks, others with the rank's number.
  absl::Status AllOk(const absl::Status& mine);
  absl::StatusOr<Machinery> Look();

  // Chooses how the plans' bytes travel: "mpi", "ucx", that over `ucx_transports` (as UCX_TLS), or
  // "nccl", between the GPUs that are current where exchanges are opened. INVALID_ARGUMENT for nccl
  // if this program has none in it.
  absl::Status UseTransport(absl::string_view name, const std::string& ucx_transports);
  // A new exchange among all over the chosen transport.
  absl::StatusOr<std::unique_ptr<Exchange>> OpenExchange();

 private:
  Ranks(std::unique_ptr<MpiSession> session, std::unique_ptr<Exchange> control);

  const std::unique_ptr<MpiSession> session_;
  const std::unique_ptr<Exchange> control_;  // of MPI, for barriers
  uint64_t gathers_ = 0;
  uint64_t channels_ = 0;
  bool nccl_ = false;
  std::unique_ptr<Fabric> fabric_;  // null: MPI, or NCCL
  std::unique_ptr<ProgressThread> progress_;
  std::vector<std::string> addresses_;
};

}  // namespace annulus
