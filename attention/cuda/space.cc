#include "attention/cuda/space.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/cuda/rows.h"
#include "base/cuda/handles.h"
#include "base/status.h"

namespace annulus::cuda {
namespace {

// Of one of the two halves of pinned memory that bulk passes through.
constexpr size_t kStagingBytes = size_t{8} << 20;
constexpr size_t kAlign = 256;
constexpr size_t kFetchAlign = 16;
constexpr size_t kFetchBytesMax = size_t{8} << 10;  // that one warp fetches

// Device memory that is kept when it is given back, since a cudaMalloc stops the device.
class Pool {
 public:
  Pool(int device, Stream stream) : device_(device), stream_(std::move(stream)) {}
  ~Pool() { FreeIdle(); }

  cudaStream_t stream() const { return stream_.get(); }

  absl::StatusOr<void*> Take(size_t bytes, size_t* size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = idle_.lower_bound(bytes);
    if (found != idle_.end() && found->first <= bytes + bytes / 4) {
      *size = found->first;
      void* data = found->second;
      idle_.erase(found);
      return data;
    }
    ANNULUS_RETURN_IF_ERROR(StatusOf(cudaSetDevice(device_), "cudaSetDevice"));
    void* data = nullptr;
    cudaError_t error = cudaMalloc(&data, bytes);
    if (error == cudaErrorMemoryAllocation && !idle_.empty()) {
      cudaGetLastError();
      FreeIdle();
      error = cudaMalloc(&data, bytes);
    }
    ANNULUS_RETURN_IF_ERROR(StatusOf(error, absl::StrCat("cudaMalloc(", bytes, " bytes)")));
    *size = bytes;
    return data;
  }

  // Whatever the stream still does with it comes to its end first: who takes it next may use it in
  // another stream.
  void GiveBack(void* data, size_t size) {
    cudaStreamSynchronize(stream_.get());
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.emplace(size, data);
  }

 private:
  void FreeIdle() {
    for (const auto& [size, data] : idle_) cudaFree(data);
    idle_.clear();
  }

  const int device_;
  const Stream stream_;
  std::mutex mutex_;
  std::multimap<size_t, void*> idle_;  // by size
};

class CudaSpace final : public Space {
 public:
  CudaSpace(int device, std::shared_ptr<Pool> pool) : device_(device), pool_(std::move(pool)) {}

  absl::Status Prepare();
  MemoryKind kind() const override { return MemoryKind::kDevice; }
  absl::Status health() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return lost_;
  }

  absl::StatusOr<Buffer> Allocate(size_t size_bytes) override;
  absl::StatusOr<Buffer> AllocateZeroed(size_t size_bytes) override;
  absl::Status CopyIn(const void* from, std::byte* to, size_t size_bytes) override;
  absl::Status CopyOut(const std::byte* from, void* to, size_t size_bytes) override;
  absl::Status CopyRowsIn(absl::Span<const RowsCopy> copies) override;
  absl::Status Copy(absl::Span<const RowsCopy> copies) override;
  absl::Status Zero(std::byte* at, size_t size_bytes) override;
  absl::Status SetIdentity(PartialView partial) override;
  absl::Status Merge(absl::Span<const RowsMerge> merges) override;
  absl::StatusOr<std::optional<Overflow>> EndRows(PartialView partial) override;
  absl::Status Follow(cudaStream_t stream) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return StatusOf(cudaStreamWaitEvent(stream, fetched_.get()), "cudaStreamWaitEvent");
  }

 private:
  // A half of the pinned memory with items from its begin and what they fetch from its end.
  struct Fetches {
    size_t half = 0;
    int count = 0;
    size_t end = kStagingBytes;
  };

  // Runs `work` alone in the stream, on this thread's device, and remembers a GPU that is lost.
  template <typename Work>
  absl::Status Run(Work work) {
    const std::lock_guard<std::mutex> lock(mutex_);
    absl::Status status = StatusOf(cudaSetDevice(device_), "cudaSetDevice");
    if (status.ok()) status = work();
    if (absl::IsUnavailable(status)) lost_ = status;
    return status;
  }
  absl::Status Wait(absl::string_view what) {
    return StatusOf(cudaStreamSynchronize(pool_->stream()), what);
  }
  template <typename Item>
  absl::StatusOr<const Item*> Upload(const std::vector<Item>& items);
  absl::Status MoveIn(const std::byte* from, std::byte* to, size_t bytes);
  absl::Status MoveOut(const std::byte* from, std::byte* to, size_t bytes);
  absl::Status AddFetches(const std::byte* from, std::byte* to, size_t bytes, Fetches* fetches);
  absl::Status SendFetches(Fetches* fetches);

  const int device_;
  const std::shared_ptr<Pool> pool_;
  mutable std::mutex mutex_;
  absl::Status lost_;
  PinnedRoom staging_;  // two halves
  Event half_free_[2];
  Event fetched_;  // the last of what CopyRowsIn was asked
  PinnedRoom items_host_;
  DeviceRoom items_;
  std::vector<CopyItem> copies_;  // reused
  std::vector<MergeItem> merges_;
};

absl::Status CudaSpace::Prepare() {
  ANNULUS_RETURN_IF_ERROR(staging_.Reserve(2 * kStagingBytes));
  for (Event& event : half_free_) {
    ANNULUS_ASSIGN_OR_RETURN(event, MakeEvent());
  }
  ANNULUS_ASSIGN_OR_RETURN(fetched_, MakeEvent());
  return StatusOf(LoadRows(), "loading the kernels for rows");
}

absl::StatusOr<Buffer> CudaSpace::Allocate(size_t size_bytes) {
  if (size_bytes == 0) return Buffer();
  size_t size = 0;
  ANNULUS_ASSIGN_OR_RETURN(void* data,
                           pool_->Take((size_bytes + kAlign - 1) / kAlign * kAlign, &size));
  const auto give_back = [pool = pool_, size](std::byte* bytes) { pool->GiveBack(bytes, size); };
  return Buffer(std::shared_ptr<std::byte>(static_cast<std::byte*>(data), give_back), size_bytes);
}

absl::StatusOr<Buffer> CudaSpace::AllocateZeroed(size_t size_bytes) {
  ANNULUS_ASSIGN_OR_RETURN(Buffer buffer, Allocate(size_bytes));
  ANNULUS_RETURN_IF_ERROR(Zero(buffer.data(), size_bytes));
  ANNULUS_RETURN_IF_ERROR(Run([&] { return Wait("cudaMemsetAsync"); }));
  return buffer;
}

// Through pinned memory: while one half is on its way, the other is filled.
absl::Status CudaSpace::MoveIn(const std::byte* from, std::byte* to, size_t bytes) {
  cudaStream_t stream = pool_->stream();
  for (size_t at = 0, half = 0; at < bytes; at += kStagingBytes, half ^= 1) {
    const size_t part = std::min(kStagingBytes, bytes - at);
    std::byte* staged = staging_.data() + half * kStagingBytes;
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(cudaEventSynchronize(half_free_[half].get()), "cudaEventSynchronize"));
    std::memcpy(staged, from + at, part);
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(cudaMemcpyAsync(to + at, staged, part, cudaMemcpyHostToDevice, stream),
                 absl::StrCat("cudaMemcpyAsync(", part, " bytes to the device)")));
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(cudaEventRecord(half_free_[half].get(), stream), "cudaEventRecord"));
  }
  return Wait("a copy to the device");
}

absl::Status CudaSpace::MoveOut(const std::byte* from, std::byte* to, size_t bytes) {
  cudaStream_t stream = pool_->stream();
  struct Part {
    size_t at = 0;
    size_t bytes = 0;
  };
  Part on_the_way[2];
  const auto land = [&](size_t half) -> absl::Status {
    const Part part = std::exchange(on_the_way[half], Part{});
    if (part.bytes == 0) return absl::OkStatus();
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(cudaEventSynchronize(half_free_[half].get()), "a copy from the device"));
    std::memcpy(to + part.at, staging_.data() + half * kStagingBytes, part.bytes);
    return absl::OkStatus();
  };
  size_t half = 0;
  for (size_t at = 0; at < bytes; at += kStagingBytes, half ^= 1) {
    ANNULUS_RETURN_IF_ERROR(land(half));
    const size_t part = std::min(kStagingBytes, bytes - at);
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(cudaMemcpyAsync(staging_.data() + half * kStagingBytes, from + at, part,
                                 cudaMemcpyDeviceToHost, stream),
                 absl::StrCat("cudaMemcpyAsync(", part, " bytes from the device)")));
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(cudaEventRecord(half_free_[half].get(), stream), "cudaEventRecord"));
    on_the_way[half] = {at, part};
  }
  ANNULUS_RETURN_IF_ERROR(land(half));
  return land(half ^ 1);
}

absl::Status CudaSpace::CopyIn(const void* from, std::byte* to, size_t size_bytes) {
  if (size_bytes == 0) return absl::OkStatus();
  return Run([&] { return MoveIn(static_cast<const std::byte*>(from), to, size_bytes); });
}

absl::Status CudaSpace::CopyOut(const std::byte* from, void* to, size_t size_bytes) {
  if (size_bytes == 0) return absl::OkStatus();
  return Run([&] { return MoveOut(from, static_cast<std::byte*>(to), size_bytes); });
}

// Of one row, in pieces.
absl::Status CudaSpace::AddFetches(const std::byte* from, std::byte* to, size_t bytes,
                                   Fetches* fetches) {
  for (size_t at = 0; at < bytes; at += kFetchBytesMax) {
    const size_t piece = std::min(kFetchBytesMax, bytes - at);
    const size_t room = (piece + kFetchAlign - 1) / kFetchAlign * kFetchAlign;
    const auto items_end = static_cast<size_t>(fetches->count + 1) * sizeof(FetchItem);
    if (items_end + room > fetches->end) ANNULUS_RETURN_IF_ERROR(SendFetches(fetches));
    if (fetches->count == 0) {
      ANNULUS_RETURN_IF_ERROR(
          StatusOf(cudaEventSynchronize(half_free_[fetches->half].get()), "cudaEventSynchronize"));
    }
    std::byte* half = staging_.data() + fetches->half * kStagingBytes;
    fetches->end -= room;
    std::memcpy(half + fetches->end, from + at, piece);
    reinterpret_cast<FetchItem*>(half)[fetches->count++] = {half + fetches->end, to + at, piece};
  }
  return absl::OkStatus();
}

absl::Status CudaSpace::SendFetches(Fetches* fetches) {
  if (fetches->count == 0) return absl::OkStatus();
  cudaStream_t stream = pool_->stream();
  const auto* items =
      reinterpret_cast<const FetchItem*>(staging_.data() + fetches->half * kStagingBytes);
  ANNULUS_RETURN_IF_ERROR(StatusOf(LaunchFetches(items, fetches->count, stream),
                                   absl::StrCat(fetches->count, " rows to the device")));
  ANNULUS_RETURN_IF_ERROR(
      StatusOf(cudaEventRecord(half_free_[fetches->half].get(), stream), "cudaEventRecord"));
  ANNULUS_RETURN_IF_ERROR(StatusOf(cudaEventRecord(fetched_.get(), stream), "cudaEventRecord"));
  *fetches = {.half = fetches->half ^ 1};
  return absl::OkStatus();
}

// A kernel fetches them from pinned memory: a copy of the driver's, and a kernel that waits for it,
// would begin later.
absl::Status CudaSpace::CopyRowsIn(absl::Span<const RowsCopy> copies) {
  return Run([&]() -> absl::Status {
    Fetches fetches;
    for (const RowsCopy& copy : copies) {
      for (size_t row = 0; row < static_cast<size_t>(copy.rows); ++row) {
        ANNULUS_RETURN_IF_ERROR(AddFetches(copy.from + row * copy.from_stride_bytes,
                                           copy.to + row * copy.to_stride_bytes, copy.row_bytes,
                                           &fetches));
      }
    }
    return SendFetches(&fetches);
  });
}

// The items on the device, until the next ones.
template <typename Item>
absl::StatusOr<const Item*> CudaSpace::Upload(const std::vector<Item>& items) {
  const size_t bytes = items.size() * sizeof(Item);
  ANNULUS_RETURN_IF_ERROR(items_host_.Reserve(bytes));
  ANNULUS_RETURN_IF_ERROR(items_.Reserve(bytes));
  std::memcpy(items_host_.data(), items.data(), bytes);
  ANNULUS_RETURN_IF_ERROR(StatusOf(cudaMemcpyAsync(items_.data(), items_host_.data(), bytes,
                                                   cudaMemcpyHostToDevice, pool_->stream()),
                                   absl::StrCat("cudaMemcpyAsync(", bytes, " bytes)")));
  return reinterpret_cast<const Item*>(items_.data());
}

absl::Status CudaSpace::Copy(absl::Span<const RowsCopy> copies) {
  return Run([&]() -> absl::Status {
    copies_.clear();
    size_t bytes_max = 0;
    for (const RowsCopy& copy : copies) {
      const size_t bytes = static_cast<size_t>(copy.rows) * copy.row_bytes;
      if (bytes == 0) continue;
      bytes_max = std::max(bytes_max, bytes);
      copies_.push_back({copy.from, copy.to, copy.rows, copy.row_bytes, copy.from_stride_bytes,
                         copy.to_stride_bytes});
    }
    if (copies_.empty()) return absl::OkStatus();
    ANNULUS_ASSIGN_OR_RETURN(const CopyItem* items, Upload(copies_));
    const auto count = static_cast<int>(copies_.size());
    const std::string what = absl::StrCat(count, " copies of up to ", bytes_max, " bytes");
    ANNULUS_RETURN_IF_ERROR(StatusOf(LaunchCopies(items, count, bytes_max, pool_->stream()), what));
    return Wait(what);
  });
}

absl::Status CudaSpace::Zero(std::byte* at, size_t size_bytes) {
  if (size_bytes == 0) return absl::OkStatus();
  return Run([&] {
    return StatusOf(cudaMemsetAsync(at, 0, size_bytes, pool_->stream()),
                    absl::StrCat("cudaMemsetAsync(", size_bytes, " bytes)"));
  });
}

absl::Status CudaSpace::SetIdentity(PartialView partial) {
  return Run([&]() -> absl::Status {
    const int64_t rows = partial.rows * partial.heads;
    const std::string what = absl::StrCat("clearing ", rows, " rows");
    ANNULUS_RETURN_IF_ERROR(StatusOf(
        LaunchIdentity(partial.out, partial.lse, rows, partial.v_head_dim, pool_->stream()), what));
    return Wait(what);
  });
}

absl::Status CudaSpace::Merge(absl::Span<const RowsMerge> merges) {
  return Run([&]() -> absl::Status {
    merges_.clear();
    int64_t rows_max = 0;
    for (const RowsMerge& merge : merges) {
      const int64_t rows = merge.from.rows * merge.heads;
      if (rows == 0) continue;
      rows_max = std::max(rows_max, rows);
      merges_.push_back({merge.into.out, merge.into.lse, merge.from.out, merge.from.lse,
                         merge.into.heads, merge.from.heads, merge.from.rows,
                         static_cast<int32_t>(merge.heads),
                         static_cast<int32_t>(merge.into.v_head_dim), merge.forget ? 1 : 0});
    }
    if (merges_.empty()) return absl::OkStatus();
    ANNULUS_ASSIGN_OR_RETURN(const MergeItem* items, Upload(merges_));
    const auto count = static_cast<int>(merges_.size());
    const std::string what = absl::StrCat(count, " merges of up to ", rows_max, " rows");
    ANNULUS_RETURN_IF_ERROR(StatusOf(LaunchMerges(items, count, rows_max, pool_->stream()), what));
    return Wait(what);
  });
}

absl::StatusOr<std::optional<Overflow>> CudaSpace::EndRows(PartialView partial) {
  const int64_t rows = partial.rows * partial.heads;
  if (rows == 0) return std::nullopt;
  uint64_t bad_row = 0;
  ANNULUS_RETURN_IF_ERROR(Run([&]() -> absl::Status {
    const std::vector<uint64_t> none = {static_cast<uint64_t>(rows)};
    ANNULUS_ASSIGN_OR_RETURN(const uint64_t* on_device, Upload(none));
    auto* found = reinterpret_cast<unsigned long long*>(const_cast<uint64_t*>(on_device));
    ANNULUS_RETURN_IF_ERROR(StatusOf(
        LaunchEndRows(partial.out, partial.lse, rows, partial.v_head_dim, found, pool_->stream()),
        absl::StrCat("the ends of ", rows, " rows")));
    return MoveOut(items_.data(), reinterpret_cast<std::byte*>(&bad_row), sizeof bad_row);
  }));
  if (bad_row >= static_cast<uint64_t>(rows)) return std::nullopt;
  const auto row = static_cast<int64_t>(bad_row);
  float lse = 0;
  ANNULUS_RETURN_IF_ERROR(
      CopyOut(reinterpret_cast<const std::byte*>(partial.lse + row), &lse, sizeof lse));
  return Overflow{row / partial.heads, row % partial.heads, !std::isfinite(lse)};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Space>> Space::Create(int device) {
  ANNULUS_RETURN_IF_ERROR(StatusOf(cudaSetDevice(device), absl::StrCat("GPU ", device)));
  // What a call copies or merges is short, and its end waits for it.
  ANNULUS_ASSIGN_OR_RETURN(Stream stream, MakeStream(/*urgent=*/true));
  auto space =
      std::make_unique<CudaSpace>(device, std::make_shared<Pool>(device, std::move(stream)));
  ANNULUS_RETURN_IF_ERROR(space->Prepare());
  return space;
}

}  // namespace annulus::cuda
