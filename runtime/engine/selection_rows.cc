// Selections by words that pick from all scores of a row.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "runtime/engine/selection.h"

namespace annulus {
namespace {

// Chunks of keys that one thread scores at a time: of few, summaries that are made take little.
constexpr int64_t kChunksOfTask = 64;

int64_t ListsOf(const SelectRows& rows) {
  switch (rows.selector->by_row()->form().lists) {
    case RowSelector::Lists::kQueryHeads:
      return rows.heads.count;
    case RowSelector::Lists::kKvHeads:
      return rows.heads.count / rows.group;
    case RowSelector::Lists::kOne:
      break;
  }
  return 1;
}

}  // namespace

int64_t Selection::scored_rows() const {
  const auto& index = rows_.selector->index();
  return rows_.kv_tokens / (index.has_value() ? index->ratio : 1);
}

int64_t Selection::ScoresOf(const Share& share) const {
  const ListRows of(rows_);
  int64_t scores = 0;
  for (int64_t row = 0; row < of.count(); ++row) {
    scores += of.Groups(row) * UnitsBelow(of.Units(row), share.chunks);
  }
  return scores;
}

absl::Status Selection::CheckRows() const {
  const RowSelector& selector = *rows_.selector->by_row();
  ANNULUS_RETURN_IF_ERROR(selector.CheckCall(rows_.queries(), rows_.kv_tokens));
  const ListRows of(rows_);
  const int64_t lists = ListsOf(rows_), units = scored_rows() / selector.scored_tokens();
  if (units >= INT32_MAX) return Refuse("units", units, "2^31", INT32_MAX);
  if (of.count() > kListRowsMax / lists) {
    return Refuse("rows", of.count(), "list_rows_max", kListRowsMax / lists);
  }
  int64_t keys = 0, bytes = 0;
  for (int64_t row = 0; row < of.count(); ++row) {
    const int64_t last = selector.causal() ? of.Queries(row).end - 1 : rows_.kv_tokens - 1;
    keys += std::min(selector.picks(), selector.OwnUnit(last, rows_.kv_tokens) + 1);
  }
  if (keys > kListKeysMax / lists) {
    return Refuse("units a list", keys, "list_keys_max", kListKeysMax / lists);
  }
  for (size_t rank = 0; rank < shares_.size(); ++rank) bytes += AnswerBytes(static_cast<int>(rank));
  if (bytes <= kSelectBytesMax) return absl::OkStatus();
  return Refuse("bytes of scores", bytes, "select_bytes_max", kSelectBytesMax);
}

absl::StatusOr<Buffer> Selection::AnswerRows(int rank, absl::Span<const TensorView> q,
                                             const SelectKeys& keys, const Loops& loops) const {
  const Share& share = shares_[static_cast<size_t>(rank)];
  Buffer answer(static_cast<size_t>(AnswerBytes(rank)));
  if (answer.empty()) return answer;
  const ListRows of(rows_);
  std::vector<int64_t> held, begin = {0};  // by row: units, and where its scores begin
  for (int64_t row = 0; row < of.count(); ++row) {
    held.push_back(UnitsBelow(of.Units(row), share.chunks));
    begin.push_back(begin.back() + of.Groups(row) * held.back());
  }
  std::vector<int> kv_heads;
  ForEachHead(share.kv_heads, [&](int head) { kv_heads.push_back(head); });
  const int64_t parts = (std::ssize(share.chunks) + kChunksOfTask - 1) / kChunksOfTask;
  float* const scores = reinterpret_cast<float*>(answer.data());
  float* const summaries = scores + begin.back() * CountOf(share.heads);
  std::mutex mutex;
  absl::Status status;
  const auto score = [&](int kv_head, int64_t part) -> absl::Status {
    const int64_t first = part * kChunksOfTask;
    const auto chunks = absl::MakeSpan(share.chunks).subspan(first, kChunksOfTask);
    ANNULUS_ASSIGN_OR_RETURN(const ScoredBy units,
                             SummariesOf(form_, keys, kv_head, chunks, scored_rows()));
    float* of_range = scores;
    for (size_t range = 0; range < share.heads.size(); ++range) {
      SelectRows rows = rows_;
      rows.q = q[range];
      rows.heads = share.heads[range];
      const auto take = [&](int head, int64_t row, int64_t group, absl::Span<const float> taken) {
        std::copy(taken.begin(), taken.end(),
                  of_range + head * begin.back() + begin[row] + group * held[row] +
                      first * units_of_chunk());
      };
      ScoreRows(rows, kv_head, units, take);
      of_range += rows.heads.count * begin.back();
    }
    return absl::OkStatus();
  };
  loops.Run(std::ssize(kv_heads) * (parts + 1), [&](int64_t task) {
    const int64_t i = task / (parts + 1), part = task % (parts + 1);
    const size_t floats = share.blocks.size() * form_.page_floats();
    const absl::Status ended = part < parts ? score(kv_heads[i], part)
                                            : PageSummariesOf(form_, keys, kv_heads[i],
                                                              share.blocks, summaries + i * floats);
    const std::lock_guard<std::mutex> lock(mutex);
    status.Update(ended);
  });
  ANNULUS_RETURN_IF_ERROR(status);
  if (loops.cancelled()) return absl::CancelledError("the call was cancelled as keys were chosen");
  return answer;
}

int64_t Selection::Merge::heads_of_list() const {
  return of_.rows_.heads.count / ListsOf(of_.rows_);
}

void Selection::Merge::MakeRoomForRows() {
  const ListRows of(of_.rows_);
  row_begin_ = {0};
  for (int64_t row = 0; row < of.count(); ++row) {
    row_begin_.push_back(row_begin_.back() + of.Groups(row) * of.Units(row));
  }
  scores_.resize(static_cast<size_t>(row_begin_.back() * of_.rows_.heads.count));
}

float* Selection::Merge::ScoresOf(int head, int64_t row, int64_t group) {
  const int64_t heads = heads_of_list(), list = head / heads;
  const int64_t of_row = row_begin_[row + 1] - row_begin_[row];
  const ListRows of(of_.rows_);
  return scores_.data() + heads * (list * row_begin_.back() + row_begin_[row]) +
         head % heads * of_row + group * of.Units(row);
}

// Returns the answer's scores' end.
const std::byte* Selection::Merge::AddRows(const Share& share, const std::byte* answer) {
  const ListRows of(of_.rows_);
  const int64_t in_chunk = of_.units_of_chunk();
  ForEachHead(share.heads, [&](int head) {
    for (int64_t row = 0; row < of.count(); ++row) {
      const int64_t units = of.Units(row), held = of_.UnitsBelow(units, share.chunks);
      for (int64_t group = 0; group < of.Groups(row); ++group) {
        float* const to = ScoresOf(head, row, group);
        for (int64_t unit = 0; unit < held; unit += in_chunk) {
          const auto count = static_cast<size_t>(std::min(in_chunk, held - unit));
          std::memcpy(to + share.chunks[unit / in_chunk] * in_chunk, answer, count * sizeof(float));
          answer += count * sizeof(float);
        }
      }
    }
  });
  return answer;
}

void Selection::Merge::AddSplitRows(const SelectRows& rows, int kv_head, const ScoredBy& scored) {
  ScoreRows(rows, kv_head, scored,
            [&](int head, int64_t row, int64_t group, absl::Span<const float> scores) {
              float* const to = ScoresOf(rows.heads.first + head, row, group);
              for (size_t i = 0; i < scores.size(); ++i) to[scored.units[i]] = scores[i];
            });
}

absl::StatusOr<KeyListData> Selection::Merge::FinishRows() {
  const ListRows of(of_.rows_);
  const RowSelector& selector = of.selector();
  KeyListData data;
  data.rows =
      selector.form().row_tokens == 1 ? KeyListData::Rows::kToken : KeyListData::Rows::kBlock;
  data.unit = selector.unit_tokens() == 1 ? KeyListData::Unit::kTokens : KeyListData::Unit::kBlocks;
  if (selector.unit_tokens() > 1) data.block_tokens = selector.unit_tokens();
  data.heads = static_cast<int>(ListsOf(of_.rows_));
  data.q_begin = of.begin();
  data.begin = {0};
  const int64_t heads = heads_of_list();
  const double scale =
      of_.rows_.scale != 0 ? of_.rows_.scale : 1 / std::sqrt(static_cast<double>(of_.rows_.q.dim));
  for (int list = 0; list < data.heads; ++list) {
    for (int64_t row = 0; row < of.count(); ++row) {
      const auto count = static_cast<size_t>(heads * (row_begin_[row + 1] - row_begin_[row]));
      const RowScores scores{.scores = {ScoresOf(static_cast<int>(list * heads), row, 0), count},
                             .heads = heads,
                             .groups = of.Groups(row),
                             .units = of.Units(row),
                             .queries = of.Queries(row),
                             .kv_tokens = of_.rows_.kv_tokens,
                             .scale = scale};
      const auto beyond = std::find_if_not(scores.scores.begin(), scores.scores.end(),
                                           [](float score) { return std::isfinite(score); });
      if (beyond != scores.scores.end()) {
        const int64_t head = (beyond - scores.scores.begin()) / (scores.groups * scores.units);
        return BeyondF32(scores.queries.begin - of_.rows_.q_begin, list * heads + head);
      }
      selector.Pick(scores, &data.keys);
      data.begin.push_back(static_cast<int64_t>(data.keys.size()));
    }
  }
  return data;
}

}  // namespace annulus
