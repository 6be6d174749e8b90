#include "comm/nccl/communicator.h"

#include <chrono>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr absl::Duration kSpin = absl::Microseconds(300);
constexpr std::chrono::microseconds kNap{20};

}  // namespace

void Glances::Rest() const {
  if (absl::Now() - begin_ < kSpin) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(kNap);
  }
}

absl::Status NcclError(ncclResult_t result, absl::string_view call) {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("NCCL: ", call, ": ", ncclGetErrorString(result)));
}

absl::StatusOr<std::string> Communicator::MakeId() {
  ncclUniqueId id;
  ANNULUS_RETURN_IF_ERROR(NcclError(ncclGetUniqueId(&id), "ncclGetUniqueId"));
  return std::string(id.internal, sizeof id.internal);
}

absl::StatusOr<Communicator> Communicator::Open(const std::string& id, int rank, int world,
                                                const KeepOn& keep_on) {
  ncclUniqueId unique;
  std::memcpy(unique.internal, id.data(), sizeof unique.internal);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  const std::string call = absl::StrCat("ncclCommInitRankConfig(rank ", rank, " of ", world, ")");
  const ncclResult_t result = ncclCommInitRankConfig(&comm, world, unique, rank, &config);
  Communicator communicator;
  communicator.comm_.reset(comm);
  ANNULUS_RETURN_IF_ERROR(NcclError(result, call));
  ANNULUS_RETURN_IF_ERROR(communicator.WaitUntilBegun(call, keep_on));
  return communicator;
}

absl::Status Communicator::WaitUntilBegun(absl::string_view call, const KeepOn& keep_on) const {
  const Glances glances;
  while (true) {
    ncclResult_t state = ncclInProgress;
    ANNULUS_RETURN_IF_ERROR(NcclError(ncclCommGetAsyncError(get(), &state), call));
    if (state != ncclInProgress) return NcclError(state, call);
    ANNULUS_RETURN_IF_ERROR(keep_on());
    glances.Rest();
  }
}

void Communicator::Finish(const KeepOn& keep_on) {
  if (comm_ == nullptr) return;
  const absl::Status finalized = NcclError(ncclCommFinalize(get()), "ncclCommFinalize");
  if (!finalized.ok() || !WaitUntilBegun("ncclCommFinalize", keep_on).ok()) return;
  ncclCommDestroy(comm_.release());
}

absl::Status Communicator::health() const {
  ncclResult_t state = ncclSuccess;
  ANNULUS_RETURN_IF_ERROR(NcclError(ncclCommGetAsyncError(get(), &state), "asking for errors"));
  return NcclError(state, "in the background");
}

}  // namespace annulus
