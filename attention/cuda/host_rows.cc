#include "attention/cuda/host_rows.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "attention/attend_args.h"
#include "attention/cuda/copies.h"
#include "base/status.h"

namespace annulus::cuda {
namespace {

constexpr size_t kAlign = 256;
constexpr size_t kPieceBytes = size_t{8} << 20;

size_t Aligned(size_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

int64_t RowsOf(const AttendArgs& args) {
  return args.into.rows * args.into.heads;
}

size_t OutRowBytes(const AttendArgs& args) {
  return static_cast<size_t>(args.into.v_head_dim) * sizeof(float);
}

bool IsNothing(float lse) {
  return lse == -std::numeric_limits<float>::infinity();
}

}  // namespace

absl::Status HostRows::Place(const AttendArgs& args, Problem* problem) {
  on_host_ = args.memory == MemoryKind::kHost;
  if (!on_host_) return absl::OkStatus();
  const auto rows = static_cast<size_t>(RowsOf(args));
  is_new_ = std::all_of(args.into.lse, args.into.lse + rows, IsNothing);
  out_at_ = Aligned(static_cast<size_t>(args.q.size()) * SizeOf(args.q.dtype));
  lse_at_ = out_at_ + Aligned(rows * OutRowBytes(args));
  ANNULUS_RETURN_IF_ERROR(device_.Reserve(lse_at_ + rows * sizeof(float)));
  ANNULUS_RETURN_IF_ERROR(pieces_.Reserve(kPieces * kPieceBytes));
  for (Event& event : copied_) {
    if (event != nullptr) continue;
    ANNULUS_ASSIGN_OR_RETURN(event, MakeEvent());
  }
  problem->q = device_.data();
  problem->q_token_stride = args.q.heads * args.q.dim;
  problem->q_head_stride = args.q.dim;
  problem->out = reinterpret_cast<float*>(device_.data() + out_at_);
  problem->lse = reinterpret_cast<float*>(device_.data() + lse_at_);
  return absl::OkStatus();
}

absl::StatusOr<std::byte*> HostRows::NextPiece() {
  ANNULUS_RETURN_IF_ERROR(
      StatusOf(cudaEventSynchronize(copied_[next_].get()), "cudaEventSynchronize"));
  return pieces_.data() + next_ * kPieceBytes;
}

absl::Status HostRows::Sent(cudaStream_t stream) {
  ANNULUS_RETURN_IF_ERROR(
      StatusOf(cudaEventRecord(copied_[next_].get(), stream), "cudaEventRecord"));
  next_ = (next_ + 1) % kPieces;
  return absl::OkStatus();
}

absl::Status HostRows::Bring(const AttendArgs& args, cudaStream_t stream) {
  if (!on_host_) return absl::OkStatus();
  const auto rows = static_cast<size_t>(RowsOf(args));
  ANNULUS_RETURN_IF_ERROR(BringQueries(args, stream));
  if (!is_new_) {
    ANNULUS_RETURN_IF_ERROR(BringBytes(args, args.into.out, device_.data() + out_at_,
                                       rows * OutRowBytes(args), stream));
  }
  return BringBytes(args, args.into.lse, device_.data() + lse_at_, rows * sizeof(float), stream);
}

// Tokens without gaps between their heads are copied whole.
absl::Status HostRows::BringQueries(const AttendArgs& args, cudaStream_t stream) {
  const TensorView& q = args.q;
  const size_t head_bytes = static_cast<size_t>(q.dim) * SizeOf(q.dtype);
  const size_t token_bytes = static_cast<size_t>(q.heads) * head_bytes;
  const bool whole = q.head_stride == q.dim;
  const auto at_once = static_cast<int64_t>(std::max<size_t>(1, kPieceBytes / token_bytes));
  std::byte* to = device_.data();
  for (int64_t first = 0; first < q.tokens; first += at_once) {
    if (IsCancelled(args)) return AttendCancelled();
    ANNULUS_ASSIGN_OR_RETURN(std::byte* const piece, NextPiece());
    std::byte* at = piece;
    for (int64_t token = first; token < std::min(q.tokens, first + at_once); ++token) {
      for (int64_t head = 0; head < (whole ? 1 : q.heads); ++head) {
        const size_t bytes = whole ? token_bytes : head_bytes;
        std::memcpy(at, q.Row(token, head), bytes);
        at += bytes;
      }
    }
    const auto bytes = static_cast<size_t>(at - piece);
    ANNULUS_RETURN_IF_ERROR(CopyAsync(to, piece, bytes, cudaMemcpyHostToDevice, stream));
    ANNULUS_RETURN_IF_ERROR(Sent(stream));
    to += bytes;
  }
  return absl::OkStatus();
}

absl::Status HostRows::BringBytes(const AttendArgs& args, const void* from, std::byte* to,
                                  size_t bytes, cudaStream_t stream) {
  for (size_t at = 0; at < bytes; at += kPieceBytes) {
    if (IsCancelled(args)) return AttendCancelled();
    ANNULUS_ASSIGN_OR_RETURN(std::byte* const piece, NextPiece());
    const size_t part = std::min(kPieceBytes, bytes - at);
    std::memcpy(piece, static_cast<const std::byte*>(from) + at, part);
    ANNULUS_RETURN_IF_ERROR(CopyAsync(to + at, piece, part, cudaMemcpyHostToDevice, stream));
    ANNULUS_RETURN_IF_ERROR(Sent(stream));
  }
  return absl::OkStatus();
}

// While one piece is on its way, the one before is given.
absl::Status HostRows::Give(const AttendArgs& args, cudaStream_t stream) {
  if (!on_host_) return absl::OkStatus();
  const size_t row_bytes = OutRowBytes(args);
  const int64_t all = RowsOf(args);
  const auto at_once = static_cast<int64_t>(kPieceBytes / (row_bytes + sizeof(float)));
  for (int64_t first = 0, before = -1; before < all; first += at_once) {
    if (IsCancelled(args)) return AttendCancelled();
    std::byte* const piece = pieces_.data() + next_ * kPieceBytes;
    if (first < all) {
      const auto rows = static_cast<size_t>(std::min(at_once, all - first));
      const auto begin = static_cast<size_t>(first);
      ANNULUS_RETURN_IF_ERROR(CopyAsync(piece, device_.data() + lse_at_ + begin * sizeof(float),
                                        rows * sizeof(float), cudaMemcpyDeviceToHost, stream));
      ANNULUS_RETURN_IF_ERROR(CopyAsync(piece + rows * sizeof(float),
                                        device_.data() + out_at_ + begin * row_bytes,
                                        rows * row_bytes, cudaMemcpyDeviceToHost, stream));
      ANNULUS_RETURN_IF_ERROR(Sent(stream));
    } else {
      next_ = (next_ + 1) % kPieces;
    }
    if (before >= 0) {
      // Two pieces take turns: the next one is that of the copy before.
      ANNULUS_ASSIGN_OR_RETURN(const std::byte* const done, NextPiece());
      GiveRows(args, before, std::min(at_once, all - before), done);
    }
    before = first;
  }
  return absl::OkStatus();
}

void HostRows::GiveRows(const AttendArgs& args, int64_t first, int64_t rows,
                        const std::byte* piece) const {
  const auto* lse = reinterpret_cast<const float*>(piece);
  const float* out = lse + rows;
  const int64_t dim = args.into.v_head_dim;
  for (int64_t row = 0; row < rows;) {
    const int64_t begin = row;
    while (row < rows && !IsNothing(lse[row])) ++row;
    std::copy(out + begin * dim, out + row * dim, args.into.out + (first + begin) * dim);
    while (row < rows && IsNothing(lse[row])) ++row;
  }
  std::copy(lse, lse + rows, args.into.lse + first);
}

}  // namespace annulus::cuda
