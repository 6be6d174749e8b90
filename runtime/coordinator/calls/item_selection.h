// ItemSelection: the words of an item's pattern that choose keys by data: what each rank is asked
// for, and the lists that come of what all answer. Not thread-safe.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "annulus/key_list.h"
#include "attention/pattern.h"
#include "runtime/coordinator/core/events.h"
#include "runtime/engine/selection.h"

namespace annulus {

// INVALID_ARGUMENT for a word in a KV-efficient context, which may have let go of what it would
// choose.
absl::Status CheckHoldsAllKeys(const ContextSpec& spec, const Selector& selector);

class ItemSelection {
 public:
  // In a layer of the context, by scores times `scale` (0: 1/√head_dim): null where all words have
  // their lists among `given`, or are those of an index. `q` [q_tokens, heads, head_dim] outlives
  // this. INVALID_ARGUMENT for a KV-efficient context, which may have let go of what a word would
  // choose, for a word of an index that has no list unless `has_index`, and as Selection::Check.
  static absl::StatusOr<std::unique_ptr<ItemSelection>> Of(
      const ShardMap& map, const request::WorkItem& ask, std::shared_ptr<const Pattern> pattern,
      const std::vector<CallList>& given, const TensorView& q, float scale, bool has_index);
  // In a track's layer: null where no word without a list has an index. `q` [q_tokens, index heads,
  // dim] and `weights` [q_tokens, index heads] outlive this. INVALID_ARGUMENT where they are not
  // what a word needs, and as Selection::Check.
  static absl::StatusOr<std::unique_ptr<ItemSelection>> ByIndex(
      const ShardMap& map, const request::WorkItem& ask, std::shared_ptr<const Pattern> pattern,
      const std::vector<CallList>& given, const TensorView& q, const std::vector<float>& weights);

  const Pattern& pattern() const { return *pattern_; }
  // The words that ranks score, in the order of their answers.
  const std::vector<std::string>& names() const { return names_; }
  int64_t AnswerBytes(int rank) const;

  // Whether one rank of the context can choose by the words and attend in the same trip: it holds
  // all keys, and every word without a list picks by units of them. Then its AnswerBytes say what
  // it has in memory for that.
  bool in_one_trip() const { return in_one_trip_; }
  // Lists in place of what it will choose.
  std::vector<CallList> StandIns() const;

  // A rank's answer: that to each word, one after the other. DATA_LOSS for what is none.
  absl::Status Add(int rank, absl::Span<const std::byte> answer);

  // After all ranks that answer with bytes have, once.
  absl::StatusOr<std::vector<CallList>> TakeLists();

 private:
  ItemSelection() = default;

  absl::Status Add(const SelectRows& rows, const Layout& layout, DType dtype);
  // With the first answer: one trip needs none.
  void MakeMerges();

  std::shared_ptr<const Pattern> pattern_;
  std::vector<std::string> names_;
  std::deque<Selection> selections_;  // by name
  DType dtype_ = DType::kF32;         // of the keys
  std::deque<Selection::Merge> merges_;
  bool in_one_trip_ = false;
};

}  // namespace annulus
