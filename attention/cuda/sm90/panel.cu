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

template <typename T, int kDim>
__global__ void __launch_bounds__(PanelShape<kDim>::kThreads, 1)
    Panel(const __grid_constant__ Work work, const __grid_constant__ RowMaps maps, int first,
          int count, int stay) {
  using Shape = PanelShape<kDim>;
  extern __shared__ __align__(1024) unsigned char memory[];
  const uint32_t shared = SharedAddress(memory);
  auto& control = *reinterpret_cast<Control<kDim>*>(memory + Shape::kControlAt);
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
      CopyBlocks(work, maps, control, shared, lane);
    } else if (warp == 1) {
      TakeTickets(work, first, count, stay, control, lane);
    } else {
      CopyQueries(maps, control, shared, static_cast<int>(threadIdx.x) - 64);
    }
  } else {
    Shape::Budget::TakeMany();
    Consumer<T, kDim>(work, control, shared, warp / 4 - 1).Run();
  }
}

template <typename T, int kDim>
cudaError_t Load(int* thread_blocks) {
  return LoadKernel(Panel<T, kDim>, PanelShape<kDim>::kThreads, SharedBytes<kDim>(), thread_blocks);
}

template <typename T>
cudaError_t LoadFor(int dim, int* thread_blocks) {
  if (dim <= 64) return Load<T, 64>(thread_blocks);
  if (dim <= 128) return Load<T, 128>(thread_blocks);
  return dim <= 192 ? Load<T, 192>(thread_blocks) : Load<T, 256>(thread_blocks);
}

template <typename T, int kDim>
cudaError_t Start(const Work& work, const Launch& launch, cudaStream_t stream) {
  RowMaps maps = {};
  const cudaError_t error = MakeMaps(work, kDim, &maps);
  if (error != cudaSuccess) return error;
  const Grid grid = GridOf(launch);
  Panel<T, kDim><<<grid.thread_blocks, PanelShape<kDim>::kThreads, SharedBytes<kDim>(), stream>>>(
      work, maps, launch.first, launch.count, grid.stay);
  return cudaGetLastError();
}

template <typename T>
cudaError_t StartFor(const Work& work, const Launch& launch, cudaStream_t stream) {
  if (launch.dim <= 64) return Start<T, 64>(work, launch, stream);
  if (launch.dim <= 128) return Start<T, 128>(work, launch, stream);
  if (launch.dim <= 192) return Start<T, 192>(work, launch, stream);
  return Start<T, 256>(work, launch, stream);
}

}  // namespace
}  // namespace sm90

cudaError_t LoadPanel90(Format format, int dim, int* thread_blocks) {
  if (dim > kNarrowDimMax) return cudaErrorInvalidValue;
  return format == Format::kBF16 ? sm90::LoadFor<__nv_bfloat16>(dim, thread_blocks)
                                 : sm90::LoadFor<__half>(dim, thread_blocks);
}

cudaError_t LaunchPanel90(const Work& work, const Launch& launch, cudaStream_t stream) {
  return launch.format == Format::kBF16 ? sm90::StartFor<__nv_bfloat16>(work, launch, stream)
                                        : sm90::StartFor<__half>(work, launch, stream);
}

}  // namespace annulus::cuda
