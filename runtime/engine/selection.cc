#include "runtime/engine/selection.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "runtime/engine/wire_rows.h"

namespace annulus {
namespace {

static_assert(sizeof(Candidate) == 8);

// Rows that one thread takes at a time.
constexpr int64_t kRowsOfTask = 64;

}  // namespace

void Loops::Run(int64_t count, absl::FunctionRef<void(int64_t)> body) const {
  const auto unless_cancelled = [&](int64_t i) {
    if (!cancelled()) body(i);
  };
  if (pool != nullptr) return pool->ParallelFor(count, unless_cancelled, turn);
  for (int64_t i = 0; i < count; ++i) unless_cancelled(i);
}

Selection::Selection(const SelectRows& rows, const Layout& layout)
    : rows_(rows), form_(*rows.selector, static_cast<int>(rows.q.dim)) {
  const Selector& selector = *rows_.selector;
  const TokenRange q = rows_.queries();
  const int64_t chunk_tokens = blocks_of_chunk() * kBlockTokens;
  if (by_row()) {
    const ListRows of(rows_);
    const int64_t units = of.count() == 0 ? 0 : of.Units(of.count() - 1);
    end_ = (units * form_.unit_tokens + chunk_tokens - 1) / chunk_tokens;
    Divide(layout);
    return;
  }
  first_choosing_ =
      std::clamp<int64_t>(selector.picks() * form_.unit_tokens - q.begin, 0, q.size());
  if (rows_.kv_tokens - 1 < selector.picks() * form_.unit_tokens) first_choosing_ = q.size();
  if (first_choosing_ < q.size()) {
    // Of the last row's own unit nothing may be a candidate, but of its block others may be.
    const int64_t candidates = selector.CandidatesEnd(q.end - 1, rows_.kv_tokens);
    end_ = (candidates * form_.unit_tokens + chunk_tokens - 1) / chunk_tokens;
  }
  Divide(layout);
}

void Selection::Divide(const Layout& layout) {
  const bool by_index = rows_.selector->index().has_value() && !by_row();
  std::vector<bool> whole(static_cast<size_t>(end_));
  const int64_t blocks = end_ * blocks_of_chunk();
  for (int rank = 0; rank < layout.world(); ++rank) {
    Share& share = shares_.emplace_back();
    share.heads = layout.QueryHeads(rank);
    share.kv_heads = layout.KvHeads(rank);
    if (share.heads.empty()) continue;
    if (by_index) share.heads = {rows_.heads};
    const std::vector<int64_t> held =
        layout.Blocks(rank).Intersect(BlockSet::Range(0, blocks)).ToVector();
    for (size_t i = 0; i < held.size();) {
      const int64_t chunk = held[i] / blocks_of_chunk();
      size_t next = i;
      while (next < held.size() && held[next] / blocks_of_chunk() == chunk) ++next;
      const bool is_whole = static_cast<int64_t>(next - i) == blocks_of_chunk();
      if (is_whole || by_index) {
        share.chunks.push_back(chunk);
        whole[static_cast<size_t>(chunk)] = true;
      }
      if (!is_whole || by_index) {
        share.blocks.insert(share.blocks.end(), held.begin() + static_cast<int64_t>(i),
                            held.begin() + static_cast<int64_t>(next));
      }
      i = next;
    }
  }
  for (int64_t chunk = 0; chunk < end_; ++chunk) {
    if (!whole[static_cast<size_t>(chunk)]) split_.push_back(chunk);
  }
}

// Of the units of these chunks.
int64_t Selection::UnitsBelow(int64_t end_unit, const std::vector<int64_t>& chunks) const {
  const int64_t last = end_unit / units_of_chunk();
  const auto end = std::lower_bound(chunks.begin(), chunks.end(), last);
  const int64_t units = (end - chunks.begin()) * units_of_chunk();
  return end != chunks.end() && *end == last ? units + end_unit % units_of_chunk() : units;
}

int64_t Selection::CandidatesOf(int64_t row, const std::vector<int64_t>& chunks) const {
  const Selector& selector = *rows_.selector;
  if (row < first_choosing_) return 0;
  const int64_t end_unit = selector.CandidatesEnd(rows_.q_begin + row, rows_.kv_tokens);
  return std::min(UnitsBelow(end_unit, chunks), selector.picks_of_candidates());
}

int64_t Selection::AnswerBytes(int rank) const {
  const Share& share = shares_[static_cast<size_t>(rank)];
  if (by_row()) {
    return ScoresOf(share) * CountOf(share.heads) * static_cast<int64_t>(sizeof(float)) +
           SummaryBytes(share);
  }
  int64_t candidates = 0;
  for (int64_t row = first_choosing_; row < rows_.q.tokens; ++row) {
    candidates += CandidatesOf(row, share.chunks);
  }
  return candidates * CountOf(share.heads) * static_cast<int64_t>(sizeof(Candidate)) +
         SummaryBytes(share);
}

absl::Status Selection::Refuse(const char* what, int64_t value, const char* bound,
                               int64_t most) const {
  return absl::InvalidArgumentError(absl::StrCat(
      "pattern: ", rows_.selector->name(), ": ", value, " ", what, " for ", rows_.q.tokens,
      " queries; expected at most ", bound, ", ", most, ": ask for fewer at once"));
}

absl::Status Selection::Check() const {
  if (by_row()) return CheckRows();
  const Selector& selector = *rows_.selector;
  const int64_t rows = rows_.q.tokens, heads = rows_.heads.count;
  const int64_t own = selector.OwnUnit(rows_.queries().end - 1, rows_.kv_tokens);
  if (own > INT32_MAX) return Refuse("units", own, "2^31", INT32_MAX);
  if (rows > kListRowsMax / heads)
    return Refuse("rows", rows, "list_rows_max", kListRowsMax / heads);
  int64_t keys = 0, bytes = 0;
  for (int64_t row = 0; row < rows; ++row) {
    keys += std::min(selector.picks(), selector.OwnUnit(rows_.q_begin + row, rows_.kv_tokens) + 1);
  }
  if (keys > kListKeysMax / heads) {
    return Refuse("units a head", keys, "list_keys_max", kListKeysMax / heads);
  }
  for (size_t rank = 0; rank < shares_.size(); ++rank) bytes += AnswerBytes(static_cast<int>(rank));
  if (bytes <= kSelectBytesMax) return absl::OkStatus();
  return Refuse("bytes of candidates", bytes, "select_bytes_max", kSelectBytesMax);
}

absl::StatusOr<Buffer> Selection::Answer(int rank, absl::Span<const TensorView> q,
                                         const SelectKeys& keys, const Loops& loops) const {
  if (by_row()) return AnswerRows(rank, q, keys, loops);
  const Share& share = shares_[static_cast<size_t>(rank)];
  Buffer answer(static_cast<size_t>(AnswerBytes(rank)));
  if (answer.empty()) return answer;
  std::byte* summaries = answer.data() + answer.size() - SummaryBytes(share);
  std::vector<int> kv_heads;
  ForEachHead(share.kv_heads, [&](int head) { kv_heads.push_back(head); });
  std::vector<ScoredBy> scored(kv_heads.size());
  std::mutex mutex;
  absl::Status status;
  loops.Run(static_cast<int64_t>(kv_heads.size()), [&](int64_t i) {
    const int kv_head = kv_heads[static_cast<size_t>(i)];
    absl::StatusOr<ScoredBy> made =
        SummariesOf(form_, keys, kv_head, share.chunks, rows_.kv_tokens);
    absl::Status ended = made.status();
    if (made.ok()) scored[static_cast<size_t>(i)] = *std::move(made);
    const size_t floats = share.blocks.size() * form_.page_floats();
    ended.Update(PageSummariesOf(form_, keys, kv_head, share.blocks,
                                 reinterpret_cast<float*>(summaries) + i * floats));
    const std::lock_guard<std::mutex> lock(mutex);
    status.Update(ended);
  });
  ANNULUS_RETURN_IF_ERROR(status);
  const int64_t all = rows_.q.tokens;
  const int64_t tasks = (all - first_choosing_ + kRowsOfTask - 1) / kRowsOfTask;
  std::byte* at = answer.data();
  for (size_t range = 0; range < share.heads.size(); ++range) {
    SelectRows rows = rows_;
    rows.q = q[range];
    rows.heads = share.heads[range];
    std::vector<std::vector<Candidate>> best(static_cast<size_t>(rows.heads.count * all));
    loops.Run(tasks * static_cast<int64_t>(kv_heads.size()), [&](int64_t task) {
      const size_t i = static_cast<size_t>(task) % kv_heads.size();
      const int64_t first =
          first_choosing_ + task / static_cast<int64_t>(kv_heads.size()) * kRowsOfTask;
      BestOf(rows, kv_heads[i], first, std::min(kRowsOfTask, all - first), scored[i],
             absl::MakeSpan(best));
    });
    if (loops.cancelled()) {
      return absl::CancelledError("the call was cancelled as keys were chosen");
    }
    for (const std::vector<Candidate>& of_row : best) {
      const size_t bytes = of_row.size() * sizeof(Candidate);
      if (bytes > 0) std::memcpy(at, of_row.data(), bytes);
      at += bytes;
    }
  }
  ANNULUS_CHECK(at == summaries);
  return answer;
}

Selection::Merge::Merge(const Selection& selection, const TensorView& q, DType dtype)
    : of_(selection),
      q_(q),
      dtype_(dtype),
      best_(of_.by_row() ? 0 : static_cast<size_t>(of_.rows_.heads.count * of_.rows_.q.tokens)),
      pages_(static_cast<size_t>(of_.rows_.heads.count / of_.rows_.group)) {
  const size_t blocks = of_.split_.size() * static_cast<size_t>(of_.blocks_of_chunk());
  for (std::vector<float>& pages : pages_) pages.resize(blocks * of_.form_.page_floats());
  if (of_.by_row()) MakeRoomForRows();
}

absl::Status Selection::Merge::Add(int rank, absl::Span<const std::byte> answer) {
  const Share& share = of_.shares_[static_cast<size_t>(rank)];
  const int64_t expected = of_.AnswerBytes(rank);
  if (static_cast<int64_t>(answer.size()) != expected) {
    return absl::DataLossError(absl::StrCat("candidates of rank ", rank, ": ", answer.size(),
                                            " bytes; expected ", expected));
  }
  const std::byte* at = answer.data();
  if (of_.by_row()) at = AddRows(share, at);
  ForEachHead(of_.by_row() ? HeadRanges() : share.heads, [&](int head) {
    const int64_t rows = of_.rows_.q.tokens;
    for (int64_t row = of_.first_choosing_; row < rows; ++row) {
      const auto count = static_cast<size_t>(of_.CandidatesOf(row, share.chunks));
      std::vector<Candidate>& best = best_[static_cast<size_t>(head * rows + row)];
      const size_t before = best.size();
      best.resize(before + count);
      if (count > 0) std::memcpy(best.data() + before, at, count * sizeof(Candidate));
      at += count * sizeof(Candidate);
    }
  });
  if (of_.rows_.selector->index().has_value()) return absl::OkStatus();
  const size_t floats = of_.form_.page_floats();
  const int64_t blocks = of_.blocks_of_chunk();
  ForEachHead(share.kv_heads, [&](int head) {
    for (const int64_t block : share.blocks) {
      const auto unit = std::lower_bound(of_.split_.begin(), of_.split_.end(), block / blocks) -
                        of_.split_.begin();
      float* to = pages_[static_cast<size_t>(head)].data() +
                  static_cast<size_t>(unit * blocks + block % blocks) * floats;
      std::memcpy(to, at, floats * sizeof(float));
      at += floats * sizeof(float);
    }
  });
  return absl::OkStatus();
}

// Units that lie with several ranks, scored as a rank would.
void Selection::Merge::AddSplit() {
  const size_t floats = of_.form_.page_floats();
  const auto blocks = static_cast<size_t>(of_.blocks_of_chunk());
  SelectRows rows = of_.rows_;
  Buffer rounded(static_cast<size_t>(q_.size()) * SizeOf(dtype_));
  PackQueryRows(q_, 0, q_.tokens, {0, static_cast<int>(q_.heads)}, dtype_, rounded.data());
  rows.q = TensorView::Contiguous(rounded.data(), dtype_, q_.tokens, q_.heads, q_.dim);
  std::vector<std::vector<Candidate>> best(best_.size());
  for (size_t head = 0; head < pages_.size(); ++head) {
    ScoredBy scored;
    scored.own.resize(of_.split_.size() * floats);
    for (size_t i = 0; i < of_.split_.size(); ++i) {
      std::vector<const float*> pages;
      for (size_t b = 0; b < blocks; ++b) {
        pages.push_back(pages_[head].data() + (i * blocks + b) * floats);
      }
      SummariseUnits(of_.form_, pages, scored.own.data() + i * floats);
      scored.units.push_back(static_cast<int32_t>(of_.split_[i]));
      scored.summaries.push_back(scored.own.data() + i * floats);
    }
    if (of_.by_row()) {
      AddSplitRows(rows, static_cast<int>(head), scored);
      continue;
    }
    BestOf(rows, static_cast<int>(head), of_.first_choosing_, q_.tokens - of_.first_choosing_,
           scored, absl::MakeSpan(best));
  }
  for (size_t i = 0; i < best.size(); ++i) {
    best_[i].insert(best_[i].end(), best[i].begin(), best[i].end());
  }
}

void Selection::Merge::AddBest(std::vector<Candidate>& best, std::vector<int32_t>* keys) const {
  const Selector& selector = *of_.rows_.selector;
  if (selector.index().has_value() && of_.blocks_of_chunk() > 1) {
    const auto by_unit = [](const Candidate& a, const Candidate& b) {
      return a.unit != b.unit ? a.unit < b.unit : a.score > b.score;
    };
    std::sort(best.begin(), best.end(), by_unit);
    const auto same = [](const Candidate& a, const Candidate& b) { return a.unit == b.unit; };
    best.erase(std::unique(best.begin(), best.end(), same), best.end());
  }
  const auto picks = static_cast<size_t>(selector.picks_of_candidates());
  if (best.size() > picks) {
    std::nth_element(best.begin(), best.begin() + static_cast<int64_t>(picks), best.end(), Before);
    best.resize(picks);
  }
  const auto first = static_cast<int64_t>(keys->size());
  for (const Candidate& candidate : best) keys->push_back(candidate.unit);
  std::sort(keys->begin() + first, keys->end());
}

absl::Status Selection::Merge::CheckPicked(size_t place) const {
  for (const Candidate& candidate : best_[place]) {
    if (std::isfinite(candidate.score)) continue;
    const auto at = static_cast<int64_t>(place), rows = of_.rows_.q.tokens;
    return BeyondF32(at % rows, at / rows);
  }
  return absl::OkStatus();
}

absl::Status Selection::Merge::BeyondF32(int64_t row, int64_t head) const {
  return absl::InvalidArgumentError(
      absl::StrCat("pattern: ", of_.rows_.selector->name(), ": row ", row, ", head ", head,
                   " scores a unit beyond what f32 holds; expected finite scores"));
}

absl::StatusOr<KeyListData> Selection::Merge::Finish() && {
  if (!of_.split_.empty()) AddSplit();
  if (of_.by_row()) return FinishRows();
  const Selector& selector = *of_.rows_.selector;
  KeyListData data;
  data.rows = KeyListData::Rows::kToken;
  if (selector.unit_tokens() == 1) {
    data.unit = KeyListData::Unit::kTokens;
  } else {
    data.block_tokens = selector.unit_tokens();
  }
  data.heads = of_.rows_.heads.count;
  data.q_begin = of_.rows_.q_begin;
  data.begin = {0};
  data.begin.reserve(best_.size() + 1);
  for (size_t i = 0; i < best_.size(); ++i) {
    const int64_t row = static_cast<int64_t>(i) % of_.rows_.q.tokens;
    const auto own =
        static_cast<int32_t>(selector.OwnUnit(data.q_begin + row, of_.rows_.kv_tokens));
    if (row < of_.first_choosing_) {
      for (int32_t unit = 0; unit < own; ++unit) data.keys.push_back(unit);
    } else {
      AddBest(best_[i], &data.keys);
      ANNULUS_RETURN_IF_ERROR(CheckPicked(i));
    }
    if (row < of_.first_choosing_ || selector.sees_own()) data.keys.push_back(own);
    data.begin.push_back(static_cast<int64_t>(data.keys.size()));
  }
  return data;
}

}  // namespace annulus
