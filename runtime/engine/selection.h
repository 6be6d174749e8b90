// A selection over ranks: each scores the units that it holds whole and answers each row's best of
// them; of units that no rank holds whole it answers its pages' summaries, from which the caller
// scores them alike. The union of the ranks' best holds the best of all, so the caller's lists are
// those of one rank that holds everything, ties included.
//
// Over a track (an index, attention/selector.h) each rank scores the tokens that it holds, and its
// best are those of units of which it holds some: a unit's score is the highest of its tokens, so
// the best of all are among the best of the rank that has that token, and of a unit that several
// ranks name the highest score counts.
//
// A word that picks from all scores of a row (attention/row_selector.h) has each rank answer those
// of all units that it holds, of keys or rows of a track, and the caller pick from what they all
// answered.
//
// Who answers what, and in how many bytes, follows from selector, layout and positions: caller and
// ranks each work it out. An answer is, for each query head of the rank (each list of an
// index), then each row that chooses, as many candidates as there are {f32 score, i32 unit}, in the
// order of Before(), or all scores of each of the row's groups of queries, f32, by unit; then, for
// each KV head of the rank, then each block, ascending, of those
// units, its page summary, f32. Thread-safe functions of values.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "annulus/buffer.h"
#include "annulus/key_list.h"
#include "attention/select/choose.h"
#include "attention/select/score_rows.h"
#include "base/thread_pool.h"
#include "sharding/layout.h"

namespace annulus {

// Bytes that the answers of a selection may take in all; the error that meets it names it. All
// scores of a row are 4 bytes for each of its groups, query heads and units.
inline constexpr int64_t kSelectBytesMax = int64_t{1} << 30;

// Where loops run: on the threads of a pool, or, without, on the caller's alone.
struct Loops {
  ThreadPool* pool = nullptr;
  ThreadPool::Turn turn = {};
  const std::atomic<bool>* cancel = nullptr;  // bodies are passed over once it is true

  bool cancelled() const { return cancel != nullptr && cancel->load(); }
  void Run(int64_t count, absl::FunctionRef<void(int64_t)> body) const;
};

class Selection {
 public:
  // `rows` has all query heads, or lists of an index; its q needs no data. `layout` says who holds
  // which keys, or rows of the track.
  Selection(const SelectRows& rows, const Layout& layout);

  // INVALID_ARGUMENT names list_keys_max, list_rows_max or select_bytes_max.
  absl::Status Check() const;

  int64_t AnswerBytes(int rank) const;
  const SelectRows& rows() const { return rows_; }

  // What `rank` answers. `q` has for each of its ranges of query heads [rows, heads, head_dim],
  // rounded to the keys' dtype. CANCELLED once it is.
  absl::StatusOr<Buffer> Answer(int rank, absl::Span<const TensorView> q, const SelectKeys& keys,
                                const Loops& loops) const;
  // The same by an index, of which `q` has all queries and `weights` theirs, if it weighs.
  absl::StatusOr<Buffer> AnswerByIndex(int rank, const TensorView& q, const float* weights,
                                       const SelectKeys& keys, const Loops& loops) const;

  // The caller's side. Takes in a rank's answer, once each. DATA_LOSS for what is none.
  class Merge;

 private:
  friend class Merge;

  // What a rank answers with.
  struct Share {
    HeadRanges heads;
    HeadRanges kv_heads;
    // Units that it holds whole, or blocks of units within them; of an index those of which it
    // holds some.
    std::vector<int64_t> chunks;
    std::vector<int64_t> blocks;  // of units that nobody holds whole; of an index all of them
  };

  bool by_row() const { return rows_.selector->by_row() != nullptr; }
  int64_t scored_rows() const;  // that are there: of the keys, or of a track
  int64_t units_of_chunk() const { return blocks_of_chunk() * kBlockTokens / form_.unit_tokens; }
  int64_t blocks_of_chunk() const { return std::max<int64_t>(1, form_.unit_tokens / kBlockTokens); }
  void Divide(const Layout& layout);
  int64_t UnitsBelow(int64_t end_unit, const std::vector<int64_t>& chunks) const;
  int64_t ScoresOf(const Share& share) const;  // of a query head, by row
  absl::StatusOr<Buffer> AnswerRows(int rank, absl::Span<const TensorView> q,
                                    const SelectKeys& keys, const Loops& loops) const;
  absl::Status CheckRows() const;
  absl::Status Refuse(const char* what, int64_t value, const char* bound, int64_t most) const;
  // Candidates of row `row` among these chunks: none unless it chooses.
  int64_t CandidatesOf(int64_t row, const std::vector<int64_t>& chunks) const;
  int64_t SummaryBytes(const Share& share) const {
    if (rows_.selector->index().has_value()) return 0;
    return CountOf(share.kv_heads) *
           static_cast<int64_t>(share.blocks.size() * form_.page_floats()) *
           static_cast<int64_t>(sizeof(float));
  }

  SelectRows rows_;
  PageSummary form_;
  std::vector<Share> shares_;   // by rank
  std::vector<int64_t> split_;  // units that nobody holds whole, which some row may choose
  int64_t end_ = 0;             // chunks at and beyond it are no row's
  int64_t first_choosing_ = 0;  // the row from which on rows choose
};

class Selection::Merge {
 public:
  // `q` [rows, heads, head_dim], any dtype: rounded to `dtype`, the keys'. Both outlive this. An
  // index has no use for them.
  Merge(const Selection& selection, const TensorView& q, DType dtype);

  absl::Status Add(int rank, absl::Span<const std::byte> answer);

  // The lists, by query head, after all ranks have answered. INVALID_ARGUMENT names a row and a
  // head that would see a unit whose score f32 does not hold, or, where all scores of a row count,
  // that has one: which units are the best is not known then.
  absl::StatusOr<KeyListData> Finish() &&;

 private:
  void AddSplit();
  // Of a row's best, once they are cut to those that it sees.
  absl::Status CheckPicked(size_t place) const;
  absl::Status BeyondF32(int64_t row, int64_t head) const;
  void MakeRoomForRows();
  const std::byte* AddRows(const Share& share, const std::byte* answer);
  void AddSplitRows(const SelectRows& rows, int kv_head, const ScoredBy& scored);
  absl::StatusOr<KeyListData> FinishRows();
  int64_t heads_of_list() const;
  float* ScoresOf(int head, int64_t row, int64_t group);
  // The best of a row's candidates, which may name a unit more than once, at the list's end.
  void AddBest(std::vector<Candidate>& best, std::vector<int32_t>* keys) const;

  const Selection& of_;
  const TensorView q_;
  const DType dtype_;
  std::vector<std::vector<Candidate>> best_;  // [heads, rows]
  std::vector<std::vector<float>> pages_;     // by KV head: of the blocks of split units
  // Of a word that picks by rows: all scores, [lists, rows, heads of a list, groups, units], and
  // where those of a row begin within a list's, of one head.
  std::vector<float> scores_;
  std::vector<int64_t> row_begin_;
};

}  // namespace annulus
