// Communicator: NCCL's handle as a small move-only class whose calls never block for long, and its
// errors as Status. One thread.
#pragma once

#include <nccl.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace annulus {

// UNAVAILABLE with what NCCL says, unless it is ncclSuccess or says that it goes on.
absl::Status NcclError(ncclResult_t result, absl::string_view call);

// Between two looks at something that is soon over, or takes long: at first at once, for a wake-up
// takes longer than a small transfer; later with naps.
class Glances {
 public:
  void Rest() const;

 private:
  const absl::Time begin_ = absl::Now();
};

class Communicator {
 public:
  // Asked while a call goes on in the background; an error ends it.
  using KeepOn = std::function<absl::Status()>;

  // The id that all ranks of one communicator are given.
  static absl::StatusOr<std::string> MakeId();
  static absl::StatusOr<Communicator> Open(const std::string& id, int rank, int world,
                                           const KeepOn& keep_on);

  ncclComm_t get() const { return comm_.get(); }
  // Returns once what was asked of it has begun, or failed.
  absl::Status WaitUntilBegun(absl::string_view call, const KeepOn& keep_on) const;
  // Whether NCCL has met an error since.
  absl::Status health() const;
  // The orderly end, which all ranks come to: what others still read of this one's memory they have
  // then read. Without it the end is an abort.
  void Finish(const KeepOn& keep_on);

 private:
  // What is under way on the device is given up.
  struct Abort {
    void operator()(ncclComm_t comm) const { ncclCommAbort(comm); }
  };
  std::unique_ptr<ncclComm, Abort> comm_;
};

}  // namespace annulus
