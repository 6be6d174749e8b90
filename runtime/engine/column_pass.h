// A column pass over ranks, and what comes of it (attention/select/columns.h): each key's weight in
// the softmax of some queries, the keys of most weight for each KV head, and their rows. Three
// trips: each rank answers the sums of its keys; then, by the merged sums, the votes of its keys;
// then the rows of those that are kept. The votes of all keys meet at the caller, 4 bytes for each
// key and KV head, since pooling looks beyond the borders of blocks. Words that choose by columns
// and diagonals have another second trip, and none after it.
//
// Of several ranks that hold a KV head of a token group, the first takes part, with all of its
// query heads: so each key is scored once, and its vote is whole where it is made. What each rank
// gets and answers, and in how many bytes, follows from spec, layout and positions: caller and
// ranks each work it out. Thread-safe functions of values.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "annulus/buffer.h"
#include "annulus/key_list.h"
#include "annulus/tensor.h"
#include "annulus/types.h"
#include "attention/column_selector.h"
#include "attention/column_trip.h"
#include "attention/select/columns.h"
#include "runtime/engine/selection.h"
#include "sharding/layout.h"

namespace annulus {

class ColumnPass {
 public:
  // q_tokens queries at q_begin and on see the first kv_tokens keys of a layer that `layout` says
  // who holds.
  ColumnPass(const ContextSpec& spec, const Layout& layout, TokenRange queries, int64_t kv_tokens);

  // INVALID_ARGUMENT names select_bytes_max.
  absl::Status Check() const;

  bool TakesPart(int rank) const { return !ShareOf(rank).kv_heads.empty(); }

  // What a rank gets: for each of its KV heads its queries [q_tokens, group, head_dim], in the
  // context's dtype; for the votes then the base-2 logarithms of their sums [group, q_tokens] f64
  // of each KV head. Of kRows nothing, since a list goes with it.
  size_t AskedBytes(int rank, ColumnTrip trip) const;

  // A rank's side. kSums: for each KV head ExpSum [group, q_tokens]. kVotes: for each KV head f32
  // [tokens of its blocks, ascending]. `asked` has AskedBytes; the keys are the rank's, up to
  // kv_tokens. CANCELLED once it is, DATA_LOSS for logarithms that are none.
  absl::StatusOr<Buffer> Sums(int rank, const std::byte* asked, float scale, const SelectKeys& keys,
                              const Loops& loops) const;
  absl::StatusOr<Buffer> Votes(int rank, const std::byte* asked, float scale,
                               const SelectKeys& keys, const Loops& loops) const;
  // kRows: for each KV head, then each of its kept keys that the rank holds, ascending, the K row
  // and then the V row, but where V is K's prefix. INVALID_ARGUMENT for a list that is no such.
  absl::StatusOr<Buffer> KeptRows(int rank, const KeyListData& kept, const SelectKeys& keys) const;
  // kDiagonals: for each KV head ColumnQueries::Diagonals of its blocks, first the diagonals of all
  // KV heads, then their columns.
  absl::StatusOr<Buffer> Diagonals(int rank, const std::byte* asked, float scale,
                                   const SelectKeys& keys, const Loops& loops) const;
  // kSpans: for each KV head ColumnQueries::Spans of its blocks, first the weights of all KV heads,
  // then their keys' sums.
  absl::StatusOr<Buffer> Spans(int rank, const std::byte* asked, float scale,
                               const SelectKeys& keys, const Loops& loops) const;
  // Beside Check, of a pass whose second trip is kDiagonals or kSpans: INVALID_ARGUMENT names
  // select_bytes_max, or q_start where a query's position holds no token.
  absl::Status CheckWeights(ColumnTrip trip) const;
  // The blocks that rows are read from.
  const std::vector<int64_t>& Blocks(int rank) const { return ShareOf(rank).blocks; }

  // The caller's side.
  class Merge;

 private:
  friend class Merge;

  struct Share {
    std::vector<int> kv_heads;
    std::vector<int64_t> blocks;  // ascending
    int64_t tokens = 0;           // of them
  };
  const Share& ShareOf(int rank) const { return shares_[static_cast<size_t>(rank)]; }
  int64_t sums_of_head() const { return group_ * queries_.size(); }
  size_t RowBytes() const;
  TensorView QueriesOf(const std::byte* asked, size_t head) const;
  std::vector<ColumnQueries> QueriesOf(const Share& share, const std::byte* asked,
                                       float scale) const;
  // The logarithms that a rank was sent, [KV heads of its share, group, q_tokens].
  absl::StatusOr<std::vector<double>> LogsOf(int rank, const std::byte* asked) const;
  int64_t diagonals() const { return queries_.size() + kBlockTokens - 1; }  // of a block
  // Of what a rank answers to kDiagonals or kSpans: its whole weights, which come first, and all.
  size_t WholeBytes(const Share& share, ColumnTrip trip) const;
  int64_t WeightBytes(const Share& share, ColumnTrip trip) const;
  // Has `body` make such an answer in parts: of the i-th KV head of the share, blocks [from, to),
  // with the logarithms of this head's sums.
  using WeighPart =
      absl::FunctionRef<absl::Status(const ColumnQueries& queries, size_t i, int64_t from,
                                     int64_t to, absl::Span<const double> logs)>;
  absl::Status Weigh(int rank, const std::byte* asked, float scale, const Loops& loops,
                     WeighPart body) const;
  int64_t spans() const { return (queries_.end - 1) / kSpanTokens + 1; }  // up to the last query's
  // Calls body(head of the share, its blocks from, to) in parts.
  void ForEachPart(const Share& share, const Loops& loops,
                   absl::FunctionRef<void(size_t, int64_t, int64_t)> body) const;
  absl::Status CheckKept(const KeyListData& kept) const;
  // Of a KV head: those that the rank holds, as their places among all that are kept.
  std::vector<int64_t> Held(const Share& share, const KeyListData& kept, int kv_head) const;

  const ContextSpec spec_;
  const TokenRange queries_;
  const int64_t kv_tokens_;
  const int64_t group_;
  std::vector<Share> shares_;  // by rank
};

class ColumnPass::Merge {
 public:
  explicit Merge(const ColumnPass& pass);

  // What a rank answered to a trip, once each, after the trip before is over. DATA_LOSS for what is
  // no such answer.
  absl::Status Add(int rank, ColumnTrip trip, absl::Span<const std::byte> answer);
  // The bytes of an answer; of kRows after Choose.
  int64_t AnswerBytes(int rank, ColumnTrip trip) const;

  // What a rank is asked with: of q [q_tokens, heads, head_dim], any dtype, and of the sums.
  Buffer Ask(int rank, ColumnTrip trip, const TensorView& q) const;

  // After kDiagonals or kSpans, as the word has it: what it picks for the call's queries
  // q [q_tokens, heads, head_dim], the last of which are the pass's. Errors are those of the word.
  absl::StatusOr<KeyListData> Pick(const ColumnSelector& word, const TensorView& q,
                                   float scale) const;

  // After kSums. INVALID_ARGUMENT names the first query whose scores f32 does not hold.
  absl::Status EndSums();
  // After kVotes.
  void Choose(const KeepRule& rule);
  // The positions, by KV head.
  const KeyListData& kept() const { return kept_; }

  // After kRows: [keys kept, KV heads, dim] of the context's dtype; v is empty where V is K's
  // prefix.
  const Tensor& k() const { return k_; }
  const Tensor& v() const { return v_; }
  Tensor TakeK() && { return std::move(k_); }
  Tensor TakeV() && { return std::move(v_); }

 private:
  void AddSums(const Share& share, const std::byte* at);
  // Weights by key, of so many lists of each KV head.
  void AddByKey(const Share& share, int64_t lists, const std::byte* at);
  void AddRows(const Share& share, const std::byte* at);
  void AddDiagonals(const Share& share, const std::byte* at);
  void AddSpans(const Share& share, const std::byte* at);
  std::vector<float> KeyMeans() const;

  const ColumnPass& of_;
  std::vector<ExpSum> sums_;         // [KV heads, group, q_tokens]
  std::vector<double> logs_;         // of them
  std::vector<float> votes_;         // [KV heads, kv_tokens], or of kDiagonals [heads, kv_tokens]
  std::vector<uint64_t> diagonals_;  // [heads, kv_tokens], by distance
  std::vector<uint64_t> column_spans_;    // [heads, spans]
  std::vector<uint64_t> diagonal_spans_;  // [heads, spans]
  std::vector<float> key_sums_;           // [KV heads, blocks, head_dim]
  KeyListData kept_;
  Tensor k_;
  Tensor v_;
};

}  // namespace annulus
