// The outputs of a batch that lie in host memory: brought to the device if they hold something, and
// back.
#include <algorithm>
#include <cstring>
#include <limits>

#include "attention/cuda/copies.h"
#include "attention/cuda/upload.h"
#include "base/status.h"

namespace annulus::cuda {
namespace {

size_t RowsOf(const AttendArgs& args) {
  return static_cast<size_t>(args.into.rows * args.into.heads);
}

// The lse of a row that has seen no key.
bool IsNothing(float lse) {
  return lse == -std::numeric_limits<float>::infinity();
}

}  // namespace

// What comes back lies together, behind what is brought alone.
void Upload::PlaceOutputs(absl::Span<const AttendArgs> batch) {
  back_ = bytes_;
  const auto place_out = [&](size_t i) {
    const auto dim = static_cast<size_t>(batch[i].into.v_head_dim);
    problem_slots_[i].out = PlaceBytes(RowsOf(batch[i]) * dim * sizeof(float));
  };
  for (size_t i = 0; i < batch.size(); ++i) {
    if (batch[i].memory != MemoryKind::kHost) continue;
    ProblemSlots& slots = problem_slots_[i];
    const float* lse = batch[i].into.lse;
    slots.lse = PlaceBytes(RowsOf(batch[i]) * sizeof(float));
    slots.is_new = std::all_of(lse, lse + RowsOf(batch[i]), IsNothing);
    if (!slots.is_new) place_out(i);
  }
  up_end_ = bytes_;
  for (size_t i = 0; i < batch.size(); ++i) {
    if (problem_slots_[i].is_new) place_out(i);
  }
}

absl::Status Upload::CopyBack(cudaStream_t stream) {
  return CopyAsync(host_.data() + back_, device_.data() + back_, bytes_ - back_,
                   cudaMemcpyDeviceToHost, stream);
}

absl::Status Upload::Finish(absl::Span<const AttendArgs> batch, cudaStream_t stream,
                            Report* report) {
  ANNULUS_RETURN_IF_ERROR(Wait(stream));
  std::memcpy(report, shared_.data(), sizeof(Report));
  for (size_t i = 0; i < batch.size(); ++i) {
    if (batch[i].memory == MemoryKind::kHost) GiveOutputs(batch[i], problem_slots_[i]);
  }
  return absl::OkStatus();
}

// A row that still has seen nothing keeps its out.
void Upload::GiveOutputs(const AttendArgs& args, const ProblemSlots& slots) const {
  const auto* lse = reinterpret_cast<const float*>(host_.data() + slots.lse.at);
  const auto* out = reinterpret_cast<const float*>(host_.data() + slots.out.at);
  const auto dim = static_cast<size_t>(args.into.v_head_dim);
  const size_t rows = RowsOf(args);
  for (size_t row = 0; row < rows;) {
    const size_t first = row;
    while (row < rows && !IsNothing(lse[row])) ++row;
    std::copy(out + first * dim, out + row * dim, args.into.out + first * dim);
    while (row < rows && IsNothing(lse[row])) ++row;
  }
  std::copy(lse, lse + rows, args.into.lse);
}

}  // namespace annulus::cuda
