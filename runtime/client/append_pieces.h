// How an append is cut into pieces. A piece is what the service commits at once, under a key of its
// own. Pure functions.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "annulus/types.h"

namespace annulus {

struct AppendCut {
  int64_t tokens = 0;
  int64_t piece_tokens = 0;  // of each piece, fewer in the last
  int64_t bytes = 0;         // of k and v

  int64_t pieces() const { return (tokens + piece_tokens - 1) / piece_tokens; }
};

// Of a piece by relay: large enough to hide a round trip to the workers, small enough for the
// service to keep many callers' pieces. No way of appending has more pieces than this gives.
inline constexpr int64_t kPieceBytes = 4 << 20;

// INVALID_ARGUMENT names a view that cannot be sent.
absl::StatusOr<AppendCut> CutAppend(const AppendRequest& request,
                                    int64_t piece_bytes = kPieceBytes);

// The error with how much of the request is committed: its first `pieces`.
absl::Status WithCommitted(const absl::Status& status, const AppendCut& cut, int64_t pieces);

// Piece `index` of the request, with its start and key; its tensors borrow the same memory.
AppendRequest PieceOf(const AppendRequest& request, const AppendCut& cut, int64_t index);

}  // namespace annulus
