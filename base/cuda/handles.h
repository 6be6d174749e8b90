// Handles of the CUDA runtime as small move-only classes, and its errors as Status.
// A handle belongs to the device that was current when it was made. Thread-compatible.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace annulus::cuda {

// OK, or an error that names the call with its sizes: RESOURCE_EXHAUSTED for memory, UNAVAILABLE if
// the device is lost, else INTERNAL.
absl::Status StatusOf(cudaError_t error, absl::string_view call);

enum class Memory { kDevice, kPinnedHost };

// Memory that grows when asked, and is kept: not zeroed, what it held is lost by growing.
template <Memory kMemory>
class Room {
 public:
  // At least so many bytes, 256-byte aligned.
  absl::Status Reserve(size_t bytes);
  std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t size_ = 0;
};
using DeviceRoom = Room<Memory::kDevice>;
using PinnedRoom = Room<Memory::kPinnedHost>;

namespace internal {
struct DestroyStream {
  void operator()(cudaStream_t stream) const;
};
struct DestroyEvent {
  void operator()(cudaEvent_t event) const;
};
}  // namespace internal

using Stream = std::unique_ptr<CUstream_st, internal::DestroyStream>;
using Event = std::unique_ptr<CUevent_st, internal::DestroyEvent>;

// `urgent`: thread blocks of its kernels start before those that wait in other streams.
absl::StatusOr<Stream> MakeStream(bool urgent = false);
absl::StatusOr<Event> MakeEvent(bool timed = false);

}  // namespace annulus::cuda
