#include "attention/cuda/parts.h"

#include <algorithm>

namespace annulus::cuda {
namespace {

// Of the first part: enough to fill a GPU for as long as the next is listed.
constexpr int64_t kPartRows = 8192;
constexpr int64_t kFirstShare = 8;
// Where each query has a list of its own, its masks take the host longer than the GPU takes with
// them: so many parts, each of so many rows at least, are listed side by side.
constexpr int64_t kListedParts = 8;
constexpr int64_t kListedPartRows = 256;

bool HasListsByQuery(const AttendArgs& args) {
  const std::vector<NamedList>& lists = args.pattern->lists();
  return std::any_of(lists.begin(), lists.end(), [](const NamedList& one) {
    return one.list != nullptr && one.list->data().rows == KeyListData::Rows::kToken;
  });
}

// The first `rows` rows of what is left of `args`, or some more up to the end of a query block.
AttendArgs TakeRows(AttendArgs& left, int64_t rows) {
  AttendArgs part = left;
  part.q_ranges.clear();
  int64_t taken = 0;
  size_t range = 0;
  for (; range < left.q_ranges.size() && taken < rows; ++range) {
    TokenRange& from = left.q_ranges[range];
    const int64_t end =
        (from.begin + rows - taken + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
    const TokenRange piece{from.begin, std::min(from.end, end)};
    part.q_ranges.push_back(piece);
    taken += piece.size();
    from.begin = piece.end;
    if (from.size() > 0) break;
  }
  left.q_ranges.erase(left.q_ranges.begin(), left.q_ranges.begin() + static_cast<int64_t>(range));
  const int64_t rest = left.q.tokens - taken;
  part.q = left.q.Tokens(0, taken);
  part.into = left.into.Rows(0, taken);
  left.q = left.q.Tokens(taken, rest);
  left.into = left.into.Rows(taken, rest);
  return part;
}

}  // namespace

std::vector<std::vector<AttendArgs>> PartsOf(absl::Span<const AttendArgs> batch) {
  std::vector<std::vector<AttendArgs>> parts;
  // Pages in host memory would be copied for each part.
  const bool whole = batch.size() != 1 || batch[0].kv->memory() != MemoryKind::kDevice;
  const bool by_query = !whole && HasListsByQuery(batch[0]);
  if (whole || batch[0].q.tokens < (by_query ? 2 * kListedPartRows : 4 * kPartRows)) {
    parts.emplace_back(batch.begin(), batch.end());
    return parts;
  }
  AttendArgs left = batch[0];
  if (by_query) {
    const int64_t rows =
        std::max(kListedPartRows, (left.q.tokens + kListedParts - 1) / kListedParts);
    while (left.q.tokens > rows) parts.push_back({TakeRows(left, rows)});
  } else {
    // A part is listed in less time than the part before takes, also where lists are long.
    for (int64_t rows = std::max(kPartRows, left.q.tokens / kFirstShare); left.q.tokens > 2 * rows;
         rows += rows / 2) {
      parts.push_back({TakeRows(left, rows)});
    }
  }
  parts.push_back({left});
  return parts;
}

}  // namespace annulus::cuda
