// The kernel for latent heads (MLA: DeepSeek-V2, arXiv 2405.04434) on sm_90a: one KV head whose
// values are the first columns of its keys, many query heads. Few rows and many.
#include "attention/cuda/load.cuh"
#include "attention/cuda/sm90/latent_consumer.cuh"
#include "attention/cuda/sm90/panel_producer.cuh"
#include "attention/cuda/sm90/start.cuh"

namespace annulus::cuda {
namespace sm90 {
namespace {

template <int kDim>
__device__ inline void CopyLatents(const RowMaps& maps, LatentControl<kDim>& control,
                                   uint32_t shared) {
  using Shape = LatentShape<kDim>;
  const bool elected = Elect();
  Ring<2> tickets;
  Ring<Shape::kStages> keys;
  Ring<kSeenStages> seen;
  PlacesAhead<LatentControl<kDim>> places(control);
  for (;;) {
    Wait(SharedAddress(&control.ticket_full[tickets.stage]), tickets.parity);
    const Ticket& ticket = control.tickets[tickets.stage];
    const int blocks = ticket.blocks;
    if (blocks < 0) return;
    const int looked_at = LookedAt(ticket);
    for (int i = 0; i < blocks; ++i) {
      if (elected && i == max(0, blocks - kWantedBlocks))
        Arrive(SharedAddress(&control.ticket_wanted));
      places.Await(i);
      if (i < looked_at) {
        Wait(SharedAddress(&control.seen_empty[seen.stage]), seen.parity ^ 1);
        if (elected) control.staged[seen.stage] = places.SeenOf(i);
        seen.Next();
      }
      const BlockPlace k = places.Of(i).k;
      places.Free(i, blocks);
      Wait(SharedAddress(&control.keys_empty[keys.stage]), keys.parity ^ 1);
      if (elected) {
        CopyBlock<kDim>(k, maps, ticket, 0, shared + Shape::kKeysAt + keys.stage * Shape::kKeyBytes,
                        SharedAddress(&control.keys_full[keys.stage]));
      }
      keys.Next();
    }
    Arrive(SharedAddress(&control.ticket_empty[tickets.stage]));
    tickets.Next();
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(LatentShape<kDim>::kThreads, 1)
    Latent(const __grid_constant__ Work work, const __grid_constant__ RowMaps maps, int first,
           int count, int stay) {
  using Shape = LatentShape<kDim>;
  extern __shared__ __align__(1024) unsigned char memory[];
  const uint32_t shared = SharedAddress(memory);
  auto& control = *reinterpret_cast<LatentControl<kDim>*>(memory + Shape::kControlAt);
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
      CopyLatents(maps, control, shared);
    } else if (warp == 1) {
      TakeTickets(work, maps, first, count, stay, control, lane);
    } else {
      CopyQueries(maps, control, shared, static_cast<int>(threadIdx.x) - 64);
    }
  } else if (warp < 8) {
    Shape::Budget::TakeMost();
    Scorer<T, kDim>(work, control, shared).Run();
  } else {
    Shape::Budget::TakeLess();
    Adder<T, kDim>(work, control, shared).Run();
  }
}

template <typename T, int kDim>
cudaError_t Load(int* thread_blocks) {
  return LoadKernel(Latent<T, kDim>, LatentShape<kDim>::kThreads, LatentBytes<kDim>(),
                    thread_blocks);
}

template <typename T>
cudaError_t LoadFor(int dim, int* thread_blocks) {
  return dim == 512 ? Load<T, 512>(thread_blocks) : Load<T, 576>(thread_blocks);
}

template <typename T, int kDim>
cudaError_t Start(const Work& work, const Launch& launch, cudaStream_t stream) {
  RowMaps maps = {};
  const cudaError_t error = MakeMaps(work, kDim, &maps);
  if (error != cudaSuccess) return error;
  const Grid grid = GridOf(launch);
  Latent<T, kDim><<<grid.thread_blocks, LatentShape<kDim>::kThreads, LatentBytes<kDim>(), stream>>>(
      work, maps, launch.first, launch.count, grid.stay);
  return cudaGetLastError();
}

template <typename T>
cudaError_t StartFor(const Work& work, const Launch& launch, cudaStream_t stream) {
  return launch.dim == 512 ? Start<T, 512>(work, launch, stream)
                           : Start<T, 576>(work, launch, stream);
}

}  // namespace
}  // namespace sm90

cudaError_t LoadLatent90(Format format, int dim, int* thread_blocks) {
  if (dim != 512 && dim != 576) return cudaErrorInvalidValue;
  return format == Format::kBF16 ? sm90::LoadFor<__nv_bfloat16>(dim, thread_blocks)
                                 : sm90::LoadFor<__half>(dim, thread_blocks);
}

cudaError_t LaunchLatent90(const Work& work, const Launch& launch, cudaStream_t stream) {
  return launch.format == Format::kBF16 ? sm90::StartFor<__nv_bfloat16>(work, launch, stream)
                                        : sm90::StartFor<__half>(work, launch, stream);
}

}  // namespace annulus::cuda
