// KeyList: data of which keys each query sees (annulus/key_list.h), checked and ready to be asked.
// list(name) in a pattern stands for one (attention/pattern.h). Immutable; safe to share between
// threads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "annulus/key_list.h"
#include "attention/ranges.h"

namespace annulus {

// Bounds of a list; the errors that meet them name them.
inline constexpr int64_t kListKeysMax = int64_t{1} << 28;  // list_keys_max: 1 GiB of keys
inline constexpr int64_t kListRowsMax = int64_t{1} << 27;  // list_rows_max, over all heads
inline constexpr int64_t kListBlockTokensMax = int64_t{1} << 20;

// "blocks", "tokens"; "token", "block", "all", "vertical-slash".
absl::string_view Name(KeyListData::Unit unit);
absl::string_view Name(KeyListData::Rows rows);
// Absent: no such name.
std::optional<KeyListData::Unit> ParseUnit(absl::string_view name);
std::optional<KeyListData::Rows> ParseRows(absl::string_view name);
// INVALID_ARGUMENT unless unit and rows are values of their types.
absl::Status CheckForm(const KeyListData& data);

class KeyList {
 public:
  using Unit = KeyListData::Unit;
  using Rows = KeyListData::Rows;

  // INVALID_ARGUMENT names the field, its value and what was expected, unless begin ascends from 0
  // to the number of keys in equally many rows for each head, and each row's keys are ≥ 0 and
  // ascend; and of kVerticalSlash, unless its unit is tokens and each head has two rows.
  static absl::StatusOr<std::shared_ptr<const KeyList>> Make(
      std::shared_ptr<const KeyListData> data);
  static absl::StatusOr<std::shared_ptr<const KeyList>> Make(KeyListData data);

  const KeyListData& data() const { return *data_; }
  const std::shared_ptr<const KeyListData>& shared_data() const { return data_; }
  int heads() const { return data_->heads; }
  int64_t rows() const { return rows_; }                // of one head
  int64_t unit_tokens() const { return unit_tokens_; }  // that a key stands for
  int64_t row_tokens() const { return row_tokens_; }    // queries of a row; 2^60 for all
  // The queries that have a row; of the last row all are counted.
  TokenRange queries() const { return queries_; }
  // The row of a query, which is one of queries().
  int64_t RowOf(int64_t q) const { return (q - queries_.begin) / row_tokens_; }
  absl::Span<const int32_t> Keys(int head, int64_t row) const;

  // The lowest head whose lists are the same.
  int HeadClass(int head) const { return classes_[static_cast<size_t>(head)]; }
  // The keys that all queries see and the distances of their blocks, where that is what rows are.
  bool is_vertical_slash() const { return data_->rows == Rows::kVerticalSlash; }
  absl::Span<const int32_t> Verticals(int head) const { return Keys(head, 0); }
  absl::Span<const int32_t> Slashes(int head) const { return Keys(head, 1); }

  // Of the lists of a head and of what they stand for.
  uint64_t hash(int head) const { return hashes_[static_cast<size_t>(head)]; }
  // Whether the lists of a head of each of two mean the same, as HeadClass does within one.
  static bool Same(const KeyList& a, int a_head, const KeyList& b, int b_head);

  // INVALID_ARGUMENT unless each key begins within `kv_tokens` tokens, each distance is below them,
  // and each query of `q` has a row. `name` is for the error.
  absl::Status Check(absl::string_view name, TokenRange q, int64_t kv_tokens) const;

  // Whether a key that a row does not see is seen by no later one: then a cache may forget it.
  // mask[i + 1, j] ≤ mask[i, j] for j ≤ i, as DKernel checks the masks that users bring.
  bool kv_efficient(int head) const { return kv_efficient_[static_cast<size_t>(head)]; }

 private:
  explicit KeyList(std::shared_ptr<const KeyListData> data) : data_(std::move(data)) {}

  absl::Status CheckShape() const;
  absl::Status CheckKeys();
  bool IsKvEfficient(int head) const;

  const std::shared_ptr<const KeyListData> data_;
  int64_t rows_ = 0;
  int64_t unit_tokens_ = 1;
  int64_t row_tokens_ = 1;
  TokenRange queries_;
  size_t largest_ = 0;  // where in keys the largest one is
  std::vector<int> classes_;
  std::vector<uint64_t> hashes_;
  std::vector<bool> kv_efficient_;
};

// What list(name) stands for in a pattern.
struct NamedList {
  std::string name;
  std::shared_ptr<const KeyList> list;
};

}  // namespace annulus
