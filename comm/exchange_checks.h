// The checks of arguments that every exchange makes alike, with one wording. Thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "comm/exchange.h"

namespace annulus {

// INVALID_ARGUMENT for a peer outside [0, world) and for null memory of more than 0 bytes.
absl::Status CheckOps(absl::Span<const SendOp> sends, absl::Span<const RecvOp> receives, int world);

// INVALID_ARGUMENT unless `rank` is one of `addresses` and its address is `own`.
absl::Status CheckMembers(int rank, absl::Span<const std::string> addresses, absl::string_view own);

// INTERNAL: what both sides of a pair of unequal sizes are told.
absl::Status SizeMismatch(int source, size_t sent_bytes, int dest, size_t received_bytes);

// UNAVAILABLE: what the others are told when `rank` aborts.
absl::Status AbortedByRank(int rank, absl::string_view why);

// UNAVAILABLE: what the others are told when `rank` is gone.
absl::Status RankIsDown(int rank, absl::string_view why);

}  // namespace annulus
