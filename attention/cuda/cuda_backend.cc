#include "attention/cuda/cuda_backend.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <future>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/attend_args.h"
#include "attention/cuda/choosing.h"
#include "attention/cuda/kernels.h"
#include "attention/cuda/launch.h"
#include "attention/cuda/parts.h"
#include "attention/cuda/space.h"
#include "attention/cuda/table_cache.h"
#include "attention/cuda/upload.h"
#include "attention/cuda/work_list.h"
#include "base/cuda/handles.h"
#include "base/status.h"
#include "base/thread_pool.h"

namespace annulus {
namespace {

using cuda::Event;
using cuda::StatusOf;
using cuda::Stream;
using cuda::TableCache;

// How often a call that may be cancelled looks whether it was, and whether it is done. One that has
// just begun, as a decode step, does so all the time: a sleep takes longer than most of them.
constexpr std::chrono::microseconds kPollPeriod{100};
constexpr std::chrono::milliseconds kAwake{2};
// Workspaces that wait for a call that has their list again: a few parts of each of a ring's steps.
constexpr size_t kIdleMax = 32;

// What a call works with besides its arguments; kept, so that a warm backend allocates nothing.
struct Workspace {
  cuda::WorkList list;
  cuda::Upload upload;
  Stream stream;
  Stream stop_stream;
  Event uploaded;
  Event done;
};

// What calls work with whose rows are put together by what they see: these are few and long, one at
// a time.
struct Gathering {
  std::mutex mutex;
  Stream stream;
  cuda::Choosing choosing;
};

// The GPU starts thread blocks of urgent calls before those of others that wait.
absl::StatusOr<std::unique_ptr<Workspace>> MakeWorkspace(bool urgent) {
  auto workspace = std::make_unique<Workspace>();
  ANNULUS_ASSIGN_OR_RETURN(workspace->stream, cuda::MakeStream(urgent));
  ANNULUS_ASSIGN_OR_RETURN(workspace->stop_stream, cuda::MakeStream());
  ANNULUS_ASSIGN_OR_RETURN(workspace->uploaded, cuda::MakeEvent());
  ANNULUS_ASSIGN_OR_RETURN(workspace->done, cuda::MakeEvent());
  return workspace;
}

bool IsCancelled(absl::Span<const AttendArgs> batch) {
  return std::any_of(batch.begin(), batch.end(), [](const AttendArgs& args) {
    return args.cancel != nullptr && args.cancel->load(std::memory_order_relaxed);
  });
}

// Waits for the kernels, and stops them if one of the callers cancels.
absl::Status WaitOrStop(absl::Span<const AttendArgs> batch, Workspace& workspace) {
  ANNULUS_RETURN_IF_ERROR(
      StatusOf(cudaEventRecord(workspace.done.get(), workspace.stream.get()), "cudaEventRecord"));
  const auto begin = std::chrono::steady_clock::now();
  for (bool stopped = false;;) {
    const cudaError_t state = cudaEventQuery(workspace.done.get());
    if (state != cudaErrorNotReady) {
      ANNULUS_RETURN_IF_ERROR(StatusOf(state, "the kernels"));
      return IsCancelled(batch) ? AttendCancelled() : absl::OkStatus();
    }
    if (!stopped && IsCancelled(batch)) {
      cudaStream_t stop = workspace.stop_stream.get();
      // Else the upload, which clears the flag, might come after it.
      ANNULUS_RETURN_IF_ERROR(
          StatusOf(cudaStreamWaitEvent(stop, workspace.uploaded.get()), "cudaStreamWaitEvent"));
      ANNULUS_RETURN_IF_ERROR(workspace.upload.Stop(stop));
      stopped = true;
    }
    if (std::chrono::steady_clock::now() - begin < kAwake) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kPollPeriod);
    }
  }
}

int ThreadsOf(int threads) {
  if (threads > 0) return threads;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) - 1);
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(int device, int devices, const cudaDeviceProp& properties,
              const cuda::LoadedKernels& kernels, std::unique_ptr<cuda::Space> space, int threads)
      : device_(device),
        space_(std::move(space)),
        tables_(*space_),
        slots_(kernels.slots),
        pool_(ThreadsOf(threads)) {
    capabilities_.name = "cuda";
    capabilities_.detail = absl::StrCat(properties.name, ", kernels of ", kernels.families);
    capabilities_.dtypes = {DType::kF32, DType::kF16, DType::kBF16};
    capabilities_.head_dim_max = cuda::kHeadDimMax;
    capabilities_.head_dim_multiple = 8;
    capabilities_.device_memory = true;
    capabilities_.gpus = devices;
    capabilities_.gpu_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  }

  const BackendCapabilities& capabilities() const override { return capabilities_; }
  MemorySpace& memory() override { return *space_; }
  ThreadPool* pool() override { return &pool_; }
  absl::Status health() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return lost_.ok() ? space_->health() : lost_;
  }

  std::optional<DeviceMemory> device_memory() const override {
    size_t free_bytes = 0;
    size_t bytes = 0;
    if (cudaSetDevice(device_) != cudaSuccess ||
        cudaMemGetInfo(&free_bytes, &bytes) != cudaSuccess) {
      return std::nullopt;
    }
    return DeviceMemory{device_, static_cast<int64_t>(bytes - free_bytes),
                        static_cast<int64_t>(bytes)};
  }

  bool Chooses(const AttendArgs& args) const override { return cuda::ChosenBy(args) != nullptr; }

  absl::Status AttendBatch(absl::Span<const AttendArgs> batch) override {
    for (const AttendArgs& args : batch) {
      ANNULUS_RETURN_IF_ERROR(CheckAttendArgs(args, capabilities_));
    }
    if (IsCancelled(batch)) return AttendCancelled();
    ANNULUS_RETURN_IF_ERROR(StatusOf(cudaSetDevice(device_), absl::StrCat("GPU ", device_)));
    std::vector<AttendArgs> listed;
    for (const AttendArgs& args : batch) {
      if (cuda::ChosenBy(args) == nullptr && cuda::GatheredBy(args) == nullptr) {
        listed.push_back(args);
      } else {
        ANNULUS_RETURN_IF_ERROR(Lost(AttendGathered(args)));
      }
    }
    return AttendListed(listed);
  }

 private:
  // Remembers that the GPU is lost.
  absl::Status Lost(absl::Status status) {
    if (!absl::IsUnavailable(status)) return status;
    const std::lock_guard<std::mutex> lock(mutex_);
    lost_ = status;
    return status;
  }

  absl::Status AttendGathered(const AttendArgs& args) {
    ANNULUS_ASSIGN_OR_RETURN(TableCache::Kept kept, tables_.Find(*args.kv));
    Gathering& gathering = gatherings_[args.turn.urgent ? 1 : 0];
    const std::lock_guard<std::mutex> lock(gathering.mutex);
    if (gathering.stream == nullptr) {
      ANNULUS_ASSIGN_OR_RETURN(gathering.stream, cuda::MakeStream(args.turn.urgent));
    }
    cudaStream_t stream = gathering.stream.get();
    cuda::Choosing& choosing = gathering.choosing;
    if (annulus::IsCancelled(args)) return AttendCancelled();
    const Selector* word = cuda::ChosenBy(args);
    ANNULUS_RETURN_IF_ERROR(
        word != nullptr ? choosing.Place(args, *word, std::move(kept))
                        : choosing.Place(args, *args.pattern->lists()[0].list, std::move(kept)));
    absl::Status status = space_->Follow(stream);
    if (status.ok()) status = choosing.StartChoosing(args, stream);
    if (status.ok()) status = choosing.StartAttending(args, stream);
    if (status.ok()) status = choosing.Finish(args, stream);
    if (!status.ok()) {  // what was started comes to its end all the same
      status.Update(StatusOf(cudaStreamSynchronize(stream), "the kernels"));
      return status;
    }
    return annulus::IsCancelled(args) ? AttendCancelled() : absl::OkStatus();
  }

  absl::Status AttendListed(absl::Span<const AttendArgs> batch) {
    if (batch.empty()) return absl::OkStatus();
    std::vector<std::unique_ptr<Workspace>> workspaces;
    const absl::Status status = Run(batch, &workspaces);
    // After an error a workspace may still be in use on the device: its end waits for that.
    ANNULUS_RETURN_IF_ERROR(Lost(status));
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::unique_ptr<Workspace>>& idle = idle_[IsUrgent(batch) ? 1 : 0];
    // So that the next call, which begins at the end, gives each part the one that it fitted into.
    for (auto one = workspaces.rbegin(); one != workspaces.rend(); ++one) {
      idle.push_back(std::move(*one));
    }
    return absl::OkStatus();
  }

  // Part by part; `workspaces` gets those of the parts, which are idle again if all is well. What
  // allocates may wait for kernels that run, and would not see a cancel then: it comes before.
  absl::Status Run(absl::Span<const AttendArgs> batch,
                   std::vector<std::unique_ptr<Workspace>>* workspaces) {
    std::vector<TableCache::Kept> kept(batch.size());
    for (size_t i = 0; i < batch.size(); ++i) {
      if (batch[i].kv->memory() != MemoryKind::kDevice) continue;
      ANNULUS_ASSIGN_OR_RETURN(kept[i], tables_.Find(*batch[i].kv));
    }
    const std::vector<std::vector<AttendArgs>> parts = cuda::PartsOf(batch);
    for (const std::vector<AttendArgs>& part : parts) {
      ANNULUS_ASSIGN_OR_RETURN(workspaces->emplace_back(), TakeWorkspace(part));
    }
    size_t started = 0, finished = 0;
    // All that was started, also after an error: that may be a cancel, which must reach each.
    const auto finish = [&](absl::Status status) {
      for (; finished < started; ++finished) {
        status.Update(Finish(parts[finished], *(*workspaces)[finished]));
      }
      return status;
    };
    // All parts are listed at once: the first is soon on its way, and those that follow are ready
    // when the GPU is.
    const auto policy = parts.size() == 1 ? std::launch::deferred : std::launch::async;
    std::vector<std::future<void>> lists;
    for (size_t i = 0; i < parts.size(); ++i) {
      lists.push_back(
          std::async(policy, [&, i] { (*workspaces)[i]->list.Make(parts[i], slots_); }));
    }
    for (const std::vector<AttendArgs>& part : parts) {
      Workspace& workspace = *(*workspaces)[started];
      lists[started].get();
      absl::Status status = workspace.upload.Place(part, workspace.list, kept);
      if (!status.ok()) return finish(status);
      if (!workspace.upload.Fits(workspace.list)) {
        ANNULUS_RETURN_IF_ERROR(finish(absl::OkStatus()));
      }
      status = Start(part, workspace);
      if (!status.ok()) return finish(status);
      ++started;
    }
    return finish(absl::OkStatus());
  }

  static bool IsUrgent(absl::Span<const AttendArgs> batch) {
    return !batch.empty() && batch.front().turn.urgent;
  }

  // The one that has the part's list, from the layer before; else the last one of those whose list
  // is no loss: it has the room that a call like the one before needs.
  absl::StatusOr<std::unique_ptr<Workspace>> TakeWorkspace(absl::Span<const AttendArgs> part) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::unique_ptr<Workspace>>& idle = idle_[IsUrgent(part) ? 1 : 0];
    auto found = std::find_if(idle.begin(), idle.end(), [&](const auto& workspace) {
      return workspace->list.Keeps(part, slots_);
    });
    if (found == idle.end()) {
      const auto last = std::find_if(idle.rbegin(), idle.rend(), [](const auto& workspace) {
        return !workspace->list.may_keep();
      });
      if (last != idle.rend()) found = std::prev(last.base());
    }
    if (found == idle.end()) {
      if (idle.size() < kIdleMax) return MakeWorkspace(IsUrgent(part));
      found = idle.begin();  // idle for longest
    }
    std::unique_ptr<Workspace> workspace = std::move(*found);
    idle.erase(found);
    return workspace;
  }

  absl::Status Start(absl::Span<const AttendArgs> batch, Workspace& workspace) const {
    if (workspace.list.tiles().empty()) return absl::OkStatus();
    cudaStream_t stream = workspace.stream.get();
    ANNULUS_RETURN_IF_ERROR(workspace.upload.Fill(batch, workspace.list, stream));
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(cudaEventRecord(workspace.uploaded.get(), stream), "cudaEventRecord"));
    ANNULUS_RETURN_IF_ERROR(space_->Follow(stream));
    ANNULUS_RETURN_IF_ERROR(cuda::LaunchAll(workspace.list, workspace.upload, stream));
    return workspace.upload.CopyBack(stream);
  }

  absl::Status Finish(absl::Span<const AttendArgs> batch, Workspace& workspace) const {
    if (workspace.list.tiles().empty()) return absl::OkStatus();
    cudaStream_t stream = workspace.stream.get();
    if (workspace.upload.work().stop != nullptr)
      ANNULUS_RETURN_IF_ERROR(WaitOrStop(batch, workspace));
    cuda::Report report;
    ANNULUS_RETURN_IF_ERROR(workspace.upload.Finish(batch, stream, &report));
    if (report.missing == 0) return absl::OkStatus();
    const KvTable& kv = *batch[static_cast<size_t>(report.problem)].kv;
    return MissingPage(kv.kv_head_first() + report.kv_head, report.block);
  }

  const int device_;
  const std::unique_ptr<cuda::Space> space_;
  cuda::TableCache tables_;
  const cuda::Slots slots_;
  ThreadPool pool_;
  BackendCapabilities capabilities_;
  mutable std::mutex mutex_;
  absl::Status lost_;  // not OK once the GPU is lost
  // Those of urgent calls apart.
  std::array<Gathering, 2> gatherings_;
  std::array<std::vector<std::unique_ptr<Workspace>>, 2> idle_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int place, absl::string_view family,
                                                         int threads) {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    const std::string why =
        error == cudaSuccess ? "" : absl::StrCat(" (", cudaGetErrorString(error), ")");
    return absl::FailedPreconditionError(absl::StrCat("no GPU is found here", why));
  }
  if (place < 0) {
    return absl::InvalidArgumentError(absl::StrCat("place: ", place, "; expected 0 or more"));
  }
  const int device = place % devices;
  cudaDeviceProp properties;
  ANNULUS_RETURN_IF_ERROR(
      StatusOf(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties"));
  if (properties.major < 8) {
    return absl::FailedPreconditionError(absl::StrCat("compute capability of GPU ", device, ": ",
                                                      properties.major, ".", properties.minor,
                                                      "; expected at least 8.0"));
  }
  ANNULUS_RETURN_IF_ERROR(StatusOf(cudaSetDevice(device), absl::StrCat("GPU ", device)));
  ANNULUS_ASSIGN_OR_RETURN(const cuda::LoadedKernels kernels,
                           cuda::LoadKernels(properties, family));
  ANNULUS_ASSIGN_OR_RETURN(std::unique_ptr<cuda::Space> space, cuda::Space::Create(device));
  return std::make_unique<CudaBackend>(device, devices, properties, kernels, std::move(space),
                                       threads);
}

}  // namespace annulus
