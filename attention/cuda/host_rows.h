// The queries and outputs of one problem that lie in host memory, and their places on the device.
// They pass through two pieces of pinned memory in turn, so that what is pinned does not grow with
// the problem. Reused: a warm one allocates nothing. One thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/backend.h"
#include "attention/cuda/work.h"
#include "base/cuda/handles.h"

namespace annulus::cuda {

class HostRows {
 public:
  // Finds places, and has `problem` read and write there. Where all lies on the device it and what
  // follows do nothing.
  absl::Status Place(const AttendArgs& args, Problem* problem);

  // Puts into the stream what brings the queries, and the outputs if one of them has seen a key.
  // CANCELLED once the call is.
  absl::Status Bring(const AttendArgs& args, cudaStream_t stream);

  // Gives the outputs to the caller once the stream is done with what comes before; waits for it. A
  // row that has seen nothing keeps its out. CANCELLED as Bring.
  absl::Status Give(const AttendArgs& args, cudaStream_t stream);

 private:
  static constexpr size_t kPieces = 2;

  // The next piece, once its last copy is done.
  absl::StatusOr<std::byte*> NextPiece();
  absl::Status Sent(cudaStream_t stream);
  absl::Status BringQueries(const AttendArgs& args, cudaStream_t stream);
  absl::Status BringBytes(const AttendArgs& args, const void* from, std::byte* to, size_t bytes,
                          cudaStream_t stream);
  // In pieces of whole rows.
  void GiveRows(const AttendArgs& args, int64_t first, int64_t rows, const std::byte* piece) const;

  bool on_host_ = false;
  bool is_new_ = false;  // no row has seen a key yet: out is not read
  PinnedRoom pieces_;
  Event copied_[kPieces];
  size_t next_ = 0;
  DeviceRoom device_;  // q, out, lse
  size_t out_at_ = 0;
  size_t lse_at_ = 0;
};

}  // namespace annulus::cuda
