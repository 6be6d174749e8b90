#include "runtime/client/append_pieces.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "attention/block_set.h"
#include "base/status.h"
#include "runtime/protocol/public/tensor_stream.h"

namespace annulus {

absl::StatusOr<AppendCut> CutAppend(const AppendRequest& request, int64_t piece_bytes) {
  ANNULUS_ASSIGN_OR_RETURN(const TensorShape k, Streamable(request.k, "k"));
  AppendCut cut{.tokens = k.tokens, .bytes = k.bytes};
  int64_t row_bytes = k.row_bytes();
  if (request.v.tokens != 0) {
    ANNULUS_ASSIGN_OR_RETURN(const TensorShape v, Streamable(request.v, "v"));
    if (v.tokens != k.tokens) {
      return absl::InvalidArgumentError(
          absl::StrCat("v.tokens: ", v.tokens, "; expected k.tokens, ", k.tokens, ", or 0"));
    }
    cut.bytes += v.bytes;
    row_bytes += v.row_bytes();
  }
  cut.piece_tokens = std::max<int64_t>(1, piece_bytes / row_bytes);
  if (cut.piece_tokens > kBlockTokens) cut.piece_tokens -= cut.piece_tokens % kBlockTokens;
  cut.piece_tokens = std::min(cut.piece_tokens, cut.tokens);
  return cut;
}

absl::Status WithCommitted(const absl::Status& status, const AppendCut& cut, int64_t pieces) {
  if (status.ok()) return status;
  const int64_t done = std::min(cut.tokens, pieces * cut.piece_tokens);
  absl::Status told(status.code(), absl::StrCat(status.message(), " (", done, " of this request's ",
                                                cut.tokens, " tokens are committed)"));
  status.ForEachPayload([&told](absl::string_view type, const absl::Cord& payload) {
    told.SetPayload(type, payload);
  });
  return told;
}

AppendRequest PieceOf(const AppendRequest& request, const AppendCut& cut, int64_t index) {
  const int64_t first = index * cut.piece_tokens;
  const int64_t count = std::min(cut.piece_tokens, cut.tokens - first);
  AppendRequest piece = request;
  piece.start += first;
  piece.k = request.k.Tokens(first, count);
  if (request.v.tokens != 0) piece.v = request.v.Tokens(first, count);
  if (piece.key.given()) piece.key.sequence += static_cast<uint64_t>(index);
  return piece;
}

}  // namespace annulus
