// Selections by an index over a track.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "attention/select/index.h"
#include "base/check.h"
#include "base/status.h"
#include "runtime/engine/selection.h"

namespace annulus {
namespace {

// Rows that one thread takes at a time: few, for their index queries are many.
constexpr int64_t kRowsOfTask = 8;
// Where rows are few, their blocks are shared out too: into parts of so many, and so few parts.
constexpr int64_t kBlocksOfTask = 16;
constexpr int64_t kPartsMax = 64;

// Where parts of the blocks begin, and the end. Blocks of one unit stay together, so that no unit
// comes twice.
std::vector<int64_t> Cut(const std::vector<int64_t>& blocks, int64_t parts, int64_t together) {
  const int64_t count = std::ssize(blocks);
  std::vector<int64_t> cuts = {0};
  for (int64_t part = 1; part < parts; ++part) {
    int64_t at = std::max(cuts.back(), count * part / parts);
    while (at > 0 && at < count && blocks[at] / together == blocks[at - 1] / together) ++at;
    cuts.push_back(at);
  }
  cuts.push_back(count);
  return cuts;
}

// BestByIndex, after a first look if that pays.
absl::Status BestOfBlocks(const SelectRows& rows, int64_t first, int64_t count,
                          const SelectKeys& keys, absl::Span<const int64_t> blocks,
                          absl::Span<std::vector<Candidate>> best) {
  if (!ScreenedIndex::Pays(rows, first, count, keys, blocks)) {
    return BestByIndex(rows, first, count, keys, blocks, best);
  }
  ScreenedIndex screened(rows, first, count, 1);
  screened.Look(0, keys, blocks);
  screened.Best(0, keys, blocks, best);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Buffer> Selection::AnswerByIndex(int rank, const TensorView& q, const float* weights,
                                                const SelectKeys& keys, const Loops& loops) const {
  if (by_row()) return AnswerRows(rank, {&q, 1}, keys, loops);
  const Share& share = shares_[static_cast<size_t>(rank)];
  Buffer answer(static_cast<size_t>(AnswerBytes(rank)));
  if (answer.empty()) return answer;
  SelectRows rows = rows_;
  rows.q = q;
  rows.weights = weights;
  const int64_t all = q.tokens, lists = rows.heads.count;
  const int64_t choosing = all - first_choosing_;
  const int64_t row_tasks = (choosing + kRowsOfTask - 1) / kRowsOfTask;
  const int64_t wanted = std::clamp<int64_t>(std::ssize(share.blocks) / kBlocksOfTask, 1,
                                             std::max<int64_t>(1, kPartsMax / row_tasks));
  const std::vector<int64_t> cuts = Cut(share.blocks, wanted, blocks_of_chunk());
  const auto parts = static_cast<int64_t>(cuts.size()) - 1;
  std::vector<std::vector<Candidate>> best(static_cast<size_t>(parts * lists * all));
  std::mutex mutex;
  absl::Status status;
  const auto blocks_of = [&](int64_t part) {
    return absl::MakeSpan(share.blocks).subspan(cuts[part], cuts[part + 1] - cuts[part]);
  };
  const auto best_of = [&](int64_t part) {
    return absl::MakeSpan(best).subspan(static_cast<size_t>(part * lists * all), lists * all);
  };
  if (ScreenedIndex::Pays(rows, first_choosing_, choosing, keys, share.blocks)) {
    ScreenedIndex screened(rows, first_choosing_, choosing, parts);
    loops.Run(parts, [&](int64_t part) { screened.Look(part, keys, blocks_of(part)); });
    loops.Run(parts,
              [&](int64_t part) { screened.Best(part, keys, blocks_of(part), best_of(part)); });
  } else {
    loops.Run(row_tasks * parts, [&](int64_t task) {
      const int64_t part = task % parts, first = first_choosing_ + task / parts * kRowsOfTask;
      const absl::Status ended = BestOfBlocks(rows, first, std::min(kRowsOfTask, all - first), keys,
                                              blocks_of(part), best_of(part));
      const std::lock_guard<std::mutex> lock(mutex);
      status.Update(ended);
    });
  }
  ANNULUS_RETURN_IF_ERROR(status);
  if (loops.cancelled()) {
    return absl::CancelledError("the call was cancelled as keys were chosen");
  }
  std::byte* at = answer.data();
  for (int64_t i = 0; i < lists * all; ++i) {
    const auto count = static_cast<size_t>(CandidatesOf(i % all, share.chunks));
    std::vector<Candidate>& merged = best[static_cast<size_t>(i)];
    for (int64_t part = 1; part < parts; ++part) {
      const auto& more = best[static_cast<size_t>(part * lists * all + i)];
      merged.insert(merged.end(), more.begin(), more.end());
    }
    if (parts > 1) std::sort(merged.begin(), merged.end(), Before);
    ANNULUS_CHECK(merged.size() >= count);
    if (count > 0) std::memcpy(at, merged.data(), count * sizeof(Candidate));
    at += count * sizeof(Candidate);
  }
  return answer;
}

}  // namespace annulus
