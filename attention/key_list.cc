#include "attention/key_list.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/pattern_shapes.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr int kListHeadsMax = 1 << 16;

template <typename... Expected>
absl::Status Refuse(absl::string_view field, int64_t value, const Expected&... expected) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, "; expected ", expected...));
}

std::string At(absl::string_view field, size_t index) {
  return absl::StrCat(field, "[", index, "]");
}

uint64_t Mix(uint64_t hash, int64_t value) {
  hash = (hash ^ static_cast<uint64_t>(value)) * 0x9e3779b97f4a7c15;
  return hash ^ (hash >> 32);
}

}  // namespace

absl::string_view Name(KeyListData::Unit unit) {
  switch (unit) {
    case KeyListData::Unit::kBlocks:
      return "blocks";
    case KeyListData::Unit::kTokens:
      return "tokens";
  }
  return "unknown";
}

absl::string_view Name(KeyListData::Rows rows) {
  switch (rows) {
    case KeyListData::Rows::kToken:
      return "token";
    case KeyListData::Rows::kBlock:
      return "block";
    case KeyListData::Rows::kVerticalSlash:
      return "vertical-slash";
    case KeyListData::Rows::kAll:
      return "all";
  }
  return "unknown";
}

std::optional<KeyListData::Unit> ParseUnit(absl::string_view name) {
  for (const auto unit : {KeyListData::Unit::kBlocks, KeyListData::Unit::kTokens}) {
    if (Name(unit) == name) return unit;
  }
  return std::nullopt;
}

std::optional<KeyListData::Rows> ParseRows(absl::string_view name) {
  using Rows = KeyListData::Rows;
  for (const Rows rows : {Rows::kToken, Rows::kBlock, Rows::kAll, Rows::kVerticalSlash}) {
    if (Name(rows) == name) return rows;
  }
  return std::nullopt;
}

absl::Status CheckForm(const KeyListData& data) {
  if (!ParseUnit(Name(data.unit)).has_value()) {
    return Refuse("unit", static_cast<int>(data.unit), "blocks or tokens");
  }
  if (!ParseRows(Name(data.rows)).has_value()) {
    return Refuse("rows", static_cast<int>(data.rows), "token, block, all or vertical-slash");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const KeyList>> KeyList::Make(KeyListData data) {
  return Make(std::make_shared<const KeyListData>(std::move(data)));
}

absl::StatusOr<std::shared_ptr<const KeyList>> KeyList::Make(
    std::shared_ptr<const KeyListData> data) {
  std::shared_ptr<KeyList> list(new KeyList(std::move(data)));
  const KeyListData& of = list->data();
  ANNULUS_RETURN_IF_ERROR(CheckForm(of));
  ANNULUS_RETURN_IF_ERROR(list->CheckShape());
  list->rows_ = (static_cast<int64_t>(of.begin.size()) - 1) / of.heads;
  list->unit_tokens_ = of.unit == Unit::kTokens ? 1 : of.block_tokens;
  list->row_tokens_ = of.rows == Rows::kToken   ? 1
                      : of.rows == Rows::kBlock ? of.block_tokens
                                                : kFar;
  list->queries_ = {of.q_begin, of.q_begin + list->rows_ * list->row_tokens_};
  if (of.rows == Rows::kAll || list->is_vertical_slash()) list->queries_ = {0, kFar};
  ANNULUS_RETURN_IF_ERROR(list->CheckKeys());
  std::multimap<uint64_t, int> classes;  // by hash, the first head of each
  for (int head = 0; head < of.heads; ++head) {
    uint64_t hash = Mix(Mix(list->unit_tokens_, list->row_tokens_), list->queries_.begin);
    if (list->is_vertical_slash()) hash = Mix(hash, of.block_tokens);
    for (int64_t row = 0; row < list->rows_; ++row) {
      const absl::Span<const int32_t> keys = list->Keys(head, row);
      hash = Mix(hash, static_cast<int64_t>(keys.size()));
      for (const int32_t key : keys) hash = Mix(hash, key);
    }
    list->hashes_.push_back(hash);
    auto [same, end] = classes.equal_range(hash);
    while (same != end && !Same(*list, same->second, *list, head)) ++same;
    if (same == end) same = classes.emplace(hash, head);
    list->classes_.push_back(same->second);
    list->kv_efficient_.push_back(same->second < head ? list->kv_efficient(same->second)
                                                      : list->IsKvEfficient(head));
  }
  return list;
}

absl::Status KeyList::CheckShape() const {
  const KeyListData& of = data();
  const auto rows = static_cast<int64_t>(of.begin.size()) - 1;
  const auto keys = static_cast<int64_t>(of.keys.size());
  if (of.block_tokens < 1 || of.block_tokens > kListBlockTokensMax) {
    return Refuse("block_tokens", of.block_tokens, "1 to ", kListBlockTokensMax);
  }
  if (of.heads < 1 || of.heads > kListHeadsMax) {
    return Refuse("heads", of.heads, "1 to ", kListHeadsMax);
  }
  if (of.q_begin < 0 || of.q_begin > kFar / 2 ||
      (of.rows == Rows::kBlock && of.q_begin % of.block_tokens != 0)) {
    return Refuse("q_begin", of.q_begin, "a position, of a block's begin where rows are blocks");
  }
  if (rows < of.heads || rows % of.heads != 0) {
    return Refuse("begin", rows + 1, "one entry for each row of each of ", of.heads,
                  " heads and one more");
  }
  if (of.rows == Rows::kAll && rows != of.heads) {
    return Refuse("begin", rows + 1, of.heads + 1, " entries: one row for all queries of a head");
  }
  if (of.rows == Rows::kVerticalSlash && rows != 2 * of.heads) {
    return Refuse("begin", rows + 1, 2 * of.heads + 1,
                  " entries: a row of keys and one of distances of each head");
  }
  if (of.rows == Rows::kVerticalSlash && of.unit != Unit::kTokens) {
    return absl::InvalidArgumentError(
        "unit: blocks; expected tokens where rows are vertical-slash");
  }
  if (rows > kListRowsMax)
    return Refuse("begin", rows + 1, "at most list_rows_max, ", kListRowsMax);
  if (keys > kListKeysMax) return Refuse("keys", keys, "at most list_keys_max, ", kListKeysMax);
  if (of.begin.front() != 0) return Refuse("begin[0]", of.begin.front(), "0");
  for (size_t i = 1; i < of.begin.size(); ++i) {
    if (of.begin[i] < of.begin[i - 1]) {
      return Refuse(At("begin", i), of.begin[i], "at least ", At("begin", i - 1), ", ",
                    of.begin[i - 1]);
    }
    if (of.begin[i] > keys) {
      return Refuse(At("begin", i), of.begin[i], "at most the number of keys, ", keys);
    }
  }
  if (of.begin.back() != keys) {
    return Refuse(At("begin", of.begin.size() - 1), of.begin.back(), "the number of keys, ", keys);
  }
  return absl::OkStatus();
}

absl::Status KeyList::CheckKeys() {
  const std::vector<int32_t>& keys = data_->keys;
  for (size_t row = 1; row < data_->begin.size(); ++row) {
    const auto end = static_cast<size_t>(data_->begin[row]);
    for (auto i = static_cast<size_t>(data_->begin[row - 1]); i < end; ++i) {
      if (keys[i] < 0) return Refuse(At("keys", i), keys[i], "0 or more");
      if (i > static_cast<size_t>(data_->begin[row - 1]) && keys[i] <= keys[i - 1]) {
        return Refuse(At("keys", i), keys[i], "more than ", At("keys", i - 1), ", ", keys[i - 1],
                      ": keys of a row ascend and are there once");
      }
      if (keys[i] > keys[largest_]) largest_ = i;
    }
  }
  return absl::OkStatus();
}

absl::Span<const int32_t> KeyList::Keys(int head, int64_t row) const {
  const auto at = static_cast<size_t>(head * rows_ + row);
  const auto begin = static_cast<size_t>(data_->begin[at]);
  const auto end = static_cast<size_t>(data_->begin[at + 1]);
  return absl::MakeConstSpan(data_->keys).subspan(begin, end - begin);
}

bool KeyList::Same(const KeyList& a, int a_head, const KeyList& b, int b_head) {
  if (&a == &b && a_head == b_head) return true;
  if (a.hash(a_head) != b.hash(b_head) || a.rows_ != b.rows_ || !(a.queries_ == b.queries_) ||
      a.unit_tokens_ != b.unit_tokens_ || a.row_tokens_ != b.row_tokens_ ||
      a.is_vertical_slash() != b.is_vertical_slash() ||
      (a.is_vertical_slash() && a.data().block_tokens != b.data().block_tokens)) {
    return false;
  }
  for (int64_t row = 0; row < a.rows_; ++row) {
    if (a.Keys(a_head, row) != b.Keys(b_head, row)) return false;
  }
  return true;
}

absl::Status KeyList::Check(absl::string_view name, TokenRange q, int64_t kv_tokens) const {
  if (!data_->keys.empty() && data_->keys[largest_] * unit_tokens_ >= kv_tokens) {
    const int64_t units = (kv_tokens + unit_tokens_ - 1) / unit_tokens_;
    return Refuse(absl::StrCat("list ", name, ": ", At("keys", largest_)), data_->keys[largest_],
                  "less than ", units, ", the ", unit_tokens_ == 1 ? "tokens" : "blocks",
                  " of the context");
  }
  if (q.begin < queries_.begin || q.end > queries_.end) {
    return absl::InvalidArgumentError(
        absl::StrCat("list ", name, ": rows of the queries [", queries_.begin, ", ", queries_.end,
                     "); expected rows of all queries of the call, [", q.begin, ", ", q.end, ")"));
  }
  return absl::OkStatus();
}

bool KeyList::IsKvEfficient(int head) const {
  if (is_vertical_slash()) return Slashes(head).empty();
  for (int64_t row = 1; row < rows_; ++row) {
    const absl::Span<const int32_t> before = Keys(head, row - 1);
    const int64_t known = queries_.begin + row * row_tokens_;  // tokens that the row before had
    auto at = before.begin();
    for (const int32_t key : Keys(head, row)) {
      if (key * unit_tokens_ >= known) break;
      at = std::lower_bound(at, before.end(), key);
      if (at == before.end() || *at != key) return false;
    }
  }
  return true;
}

}  // namespace annulus
