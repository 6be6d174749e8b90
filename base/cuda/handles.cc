#include "base/cuda/handles.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace annulus::cuda {
namespace {

bool IsDeviceLost(cudaError_t error) {
  switch (error) {
    case cudaErrorDevicesUnavailable:
    case cudaErrorECCUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
      return true;
    default:
      return false;
  }
}

}  // namespace

absl::Status StatusOf(cudaError_t error, absl::string_view call) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string text = absl::StrCat(call, ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is no fault of the calls to come
    return absl::ResourceExhaustedError(text);
  }
  if (IsDeviceLost(error)) return absl::UnavailableError(absl::StrCat("the GPU is lost: ", text));
  return absl::InternalError(text);
}

template <>
void Room<Memory::kDevice>::Free::operator()(std::byte* data) const {
  cudaFree(data);
}
template <>
void Room<Memory::kPinnedHost>::Free::operator()(std::byte* data) const {
  cudaFreeHost(data);
}

template <Memory kMemory>
absl::Status Room<kMemory>::Reserve(size_t bytes) {
  if (bytes <= size_) return absl::OkStatus();
  // A room that grows a little at each call would be allocated at each call.
  const size_t size = std::max(bytes, size_ + size_ / 2);
  data_.reset();
  size_ = 0;
  void* data = nullptr;
  if constexpr (kMemory == Memory::kDevice) {
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(cudaMalloc(&data, size), absl::StrCat("cudaMalloc(", size, " bytes)")));
  } else {
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(cudaMallocHost(&data, size), absl::StrCat("cudaMallocHost(", size, " bytes)")));
  }
  data_.reset(static_cast<std::byte*>(data));
  size_ = size;
  return absl::OkStatus();
}

template class Room<Memory::kDevice>;
template class Room<Memory::kPinnedHost>;

namespace internal {
void DestroyStream::operator()(cudaStream_t stream) const {
  cudaStreamDestroy(stream);
}
void DestroyEvent::operator()(cudaEvent_t event) const {
  cudaEventDestroy(event);
}
}  // namespace internal

absl::StatusOr<Stream> MakeStream(bool urgent) {
  cudaStream_t stream = nullptr;
  int least = 0;
  int greatest = 0;
  ANNULUS_RETURN_IF_ERROR(StatusOf(cudaDeviceGetStreamPriorityRange(&least, &greatest),
                                   "cudaDeviceGetStreamPriorityRange"));
  ANNULUS_RETURN_IF_ERROR(StatusOf(
      cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, urgent ? greatest : least),
      "cudaStreamCreateWithPriority"));
  return Stream(stream);
}

absl::StatusOr<Event> MakeEvent(bool timed) {
  cudaEvent_t event = nullptr;
  ANNULUS_RETURN_IF_ERROR(
      StatusOf(cudaEventCreateWithFlags(&event, timed ? 0 : cudaEventDisableTiming),
               "cudaEventCreateWithFlags"));
  return Event(event);
}

}  // namespace annulus::cuda
