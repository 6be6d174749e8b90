// An exchange of GPU memory as one of host memory, so that the contract's suite, which looks at its
// bytes, runs over it: operations are copied to the device when they are posted and back once their
// ticket is done. Thread rule: as exchange.h says.
#pragma once

#include <cuda_runtime_api.h>

#include <list>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "base/cuda/handles.h"
#include "base/status.h"
#include "comm/exchange.h"

namespace annulus::test {

class StagedExchange final : public Exchange {
 public:
  explicit StagedExchange(std::unique_ptr<Exchange> device) : device_(std::move(device)) {
    capabilities_ = device_->capabilities();
    capabilities_.memory = MemoryKind::kHost;
  }

  const Capabilities& capabilities() const override { return capabilities_; }
  int rank() const override { return device_->rank(); }
  int world() const override { return device_->world(); }
  Counters counters() const override { return device_->counters(); }
  void Abort(absl::Status why) override { device_->Abort(std::move(why)); }

  absl::StatusOr<Ticket> Post(absl::Span<const SendOp> sends,
                              absl::Span<const RecvOp> receives) override {
    Staged staged;
    std::vector<SendOp> device_sends;
    std::vector<RecvOp> device_receives;
    for (const SendOp& op : sends) {
      ANNULUS_ASSIGN_OR_RETURN(void* at, Stage(op.data, op.size_bytes, &staged));
      if (op.data != nullptr && op.size_bytes != 0) {
        ANNULUS_RETURN_IF_ERROR(cuda::StatusOf(
            cudaMemcpy(at, op.data, op.size_bytes, cudaMemcpyHostToDevice), "cudaMemcpy"));
      }
      device_sends.push_back({op.peer, at, op.size_bytes});
    }
    for (const RecvOp& op : receives) {
      ANNULUS_ASSIGN_OR_RETURN(void* at, Stage(op.data, op.size_bytes, &staged));
      device_receives.push_back({op.peer, at, op.size_bytes});
      staged.back.push_back({op.data, at, op.size_bytes});
    }
    ANNULUS_ASSIGN_OR_RETURN(const Ticket ticket, device_->Post(device_sends, device_receives));
    staged_[ticket] = std::move(staged);
    return ticket;
  }

  absl::Status Wait(Ticket ticket, absl::Time deadline) override {
    const absl::Status status = device_->Wait(ticket, deadline);
    if (absl::IsDeadlineExceeded(status)) return status;
    Staged staged = std::move(staged_[ticket]);
    staged_.erase(ticket);
    ANNULUS_RETURN_IF_ERROR(status);
    for (const Copy& copy : staged.back) {
      ANNULUS_RETURN_IF_ERROR(cuda::StatusOf(
          cudaMemcpy(copy.to, copy.from, copy.size_bytes, cudaMemcpyDeviceToHost), "cudaMemcpy"));
    }
    return absl::OkStatus();
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    size_t size_bytes;
  };
  struct Staged {
    std::list<cuda::DeviceRoom> rooms;
    std::vector<Copy> back;
  };

  // Null stays null, so that the device's exchange refuses it.
  static absl::StatusOr<void*> Stage(const void* data, size_t size_bytes, Staged* staged) {
    if (data == nullptr || size_bytes == 0) return nullptr;
    cuda::DeviceRoom& room = staged->rooms.emplace_back();
    ANNULUS_RETURN_IF_ERROR(room.Reserve(size_bytes));
    return static_cast<void*>(room.data());
  }

  const std::unique_ptr<Exchange> device_;
  Capabilities capabilities_;
  std::map<Ticket, Staged> staged_;
};

}  // namespace annulus::test
