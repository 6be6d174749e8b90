// The panel kernel for sm_90a: up to four halves of 64 query rows against one 64-token block after
// another. A thread block stays for many tiles. The copy engine brings keys and values into rings
// of stages; each warpgroup that computes multiplies from there, keeps weights in registers, and
// waits for no other, so that the matrix units do the products of some while others make weights.
#include "attention/cuda/load.cuh"
#include "attention/cuda/sm90/panel_consumer.cuh"
#include "attention/cuda/sm90/panel_producer.cuh"
#include "attention/cuda/sm90/start.cuh"

namespace annulus::cuda {
namespace sm90 {
namespace {

template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    Panel(const __grid_constant__ Work work, const __grid_constant__ RowMaps maps, int first,
          int count, int stay) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const uint32_t shared = SharedAddress(memory);
  auto& control = *reinterpret_cast<Control<Shape>*>(memory + Shape::kControlAt);
  const auto warp = static_cast<int>(Uniform(threadIdx.x / 32));
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    if (shared % 1024 != 0) __trap();
    InitBarriers(control);
  }
  __syncthreads();
  if (warp < 4) {
    Shape::Budget::KeepFew();
    if (warp == 0) {
      CopyBlocks(maps, control, shared);
    } else if (warp == 1) {
      TakeTickets(work, maps, first, count, stay, control, lane);
    } else {
      CopyQueries(maps, control, shared, static_cast<int>(threadIdx.x) - 64);
    }
  } else {
    Shape::Budget::TakeMany();
    Consumer<T, Shape>(work, control, shared, warp / 4 - 1).Run();
  }
}

// Calls fn with the kernel's shape for this head dim, if it has one.
template <Kernel kKernel, typename Fn>
cudaError_t ForShape(int dim, Fn fn) {
  if (dim <= 64) return fn(PanelShape<64, kKernel>());
  if (dim <= 128) return fn(PanelShape<128, kKernel>());
  if constexpr (kKernel == Kernel::kPanel90) {
    if (dim <= 192) return fn(PanelShape<192, kKernel>());
    if (dim <= kNarrowDimMax) return fn(PanelShape<256, kKernel>());
  }
  return cudaErrorInvalidValue;
}

template <typename T, Kernel kKernel>
cudaError_t Load(int dim, int* thread_blocks) {
  return ForShape<kKernel>(dim, [&](auto shape) {
    using Shape = decltype(shape);
    return LoadKernel(Panel<T, Shape>, Shape::kThreads, SharedBytes<Shape>(), thread_blocks);
  });
}

template <typename T, Kernel kKernel>
cudaError_t Start(const Work& work, const Launch& launch, cudaStream_t stream) {
  return ForShape<kKernel>(launch.dim, [&](auto shape) {
    using Shape = decltype(shape);
    RowMaps maps = {};
    const cudaError_t error = MakeMaps(work, Shape::kHeadDim, &maps);
    if (error != cudaSuccess) return error;
    const Grid grid = GridOf(launch);
    Panel<T, Shape><<<grid.thread_blocks, Shape::kThreads, SharedBytes<Shape>(), stream>>>(
        work, maps, launch.first, launch.count, grid.stay);
    return cudaGetLastError();
  });
}

template <Kernel kKernel>
cudaError_t Load(Format format, int dim, int* thread_blocks) {
  return format == Format::kBF16 ? Load<__nv_bfloat16, kKernel>(dim, thread_blocks)
                                 : Load<__half, kKernel>(dim, thread_blocks);
}

template <Kernel kKernel>
cudaError_t Start(const Work& work, const Launch& launch, cudaStream_t stream) {
  return launch.format == Format::kBF16 ? Start<__nv_bfloat16, kKernel>(work, launch, stream)
                                        : Start<__half, kKernel>(work, launch, stream);
}

}  // namespace
}  // namespace sm90

cudaError_t LoadPanel90(Format format, int dim, int* thread_blocks) {
  return sm90::Load<Kernel::kPanel90>(format, dim, thread_blocks);
}
cudaError_t LaunchPanel90(const Work& work, const Launch& launch, cudaStream_t stream) {
  return sm90::Start<Kernel::kPanel90>(work, launch, stream);
}

cudaError_t LoadSingle90(Format format, int dim, int* thread_blocks) {
  return sm90::Load<Kernel::kSingle90>(format, dim, thread_blocks);
}
cudaError_t LaunchSingle90(const Work& work, const Launch& launch, cudaStream_t stream) {
  return sm90::Start<Kernel::kSingle90>(work, launch, stream);
}

}  // namespace annulus::cuda
