// list: what data says, cell by cell.
#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/types/span.h"
#include "attention/pattern_node.h"
#include "attention/pattern_rows.h"
#include "attention/patterns/word.h"
#include "base/status.h"

namespace annulus {
namespace {

// What one row of a list shows a range of queries.
struct ListedRow {
  TokenRange q;
  absl::Span<const int32_t> keys;
  int64_t block = 0;  // of slashes: where the block of these queries begins
};

// fn(TokenRange) for the tokens of `window` that the keys of a row stand for, ascending, those of
// neighbours in one.
template <typename Fn>
void ForEachRange(absl::Span<const int32_t> keys, int64_t unit, TokenRange window, Fn fn) {
  if (window.size() <= 0) return;
  auto at = std::lower_bound(keys.begin(), keys.end(), window.begin / unit);
  while (at != keys.end() && *at * unit < window.end) {
    const int64_t begin = *at * unit;
    int64_t end = begin + unit;
    for (++at; at != keys.end() && *at * unit == end && end < window.end; ++at) end += unit;
    fn(TokenRange{std::max(begin, window.begin), std::min(end, window.end)});
  }
}

// fn(TokenRange) for the keys of `window` that `distances` give a block of `tokens` queries from
// `block` on, ascending, those that overlap or are neighbours in one.
template <typename Fn>
void ForEachSlash(absl::Span<const int32_t> distances, int64_t block, int64_t tokens,
                  TokenRange window, Fn fn) {
  if (window.size() <= 0) return;
  // From the farthest whose keys end behind the window's begin on.
  auto at = std::lower_bound(distances.begin(), distances.end(), block + tokens - window.begin);
  while (at != distances.begin() && block - *(at - 1) < window.end) {
    const int64_t begin = block - *--at;
    int64_t end = begin + tokens;
    for (; at != distances.begin() && block - *(at - 1) <= end; --at) {
      end = block - *(at - 1) + tokens;
    }
    fn(TokenRange{std::max(begin, window.begin), std::min(end, window.end)});
  }
}

// What a list says, or of a vertical-slash one a half of it.
class Listed final : public PatternNode {
 public:
  Listed(std::shared_ptr<const KeyList> list, int head, bool slashes)
      : PatternNode({.ranges = 1},
                    HashNumbers('l', std::array{HashOf(list.get(), head), uint64_t{slashes}})),
        list_(std::move(list)),
        head_(head),
        slashes_(slashes) {}

  bool shaped() const override { return false; }

  bool Allows(int64_t q, int64_t k) const override {
    if (list_ == nullptr || q < list_->queries().begin || q >= list_->queries().end) return false;
    if (slashes_) {
      const int64_t tokens = list_->data().block_tokens, least = q / tokens * tokens - k;
      const absl::Span<const int32_t> all = list_->Slashes(head_);
      const auto at = std::lower_bound(all.begin(), all.end(), least);
      return at != all.end() && *at < least + tokens;
    }
    const absl::Span<const int32_t> keys = list_->Keys(head_, list_->RowOf(q));
    return std::binary_search(keys.begin(), keys.end(), k / list_->unit_tokens());
  }

  void AppendShapes(const ShapeWindow&, ShapeList*) const override {}

  // Pairs of a cell are counted where several rows of the list meet in it, since together they may
  // fill it.
  void Row(const ShapeWindow& window, std::vector<TileRun>* out) const override {
    out->clear();
    const TokenRange keys{window.k_begin, window.k_end};
    const int64_t rows = window.q_end - window.q_begin;
    const auto is_full = [&](int64_t block, int64_t pairs) {
      return pairs == rows * std::min(kBlockTokens, keys.end - block * kBlockTokens);
    };
    RunMaker runs(out);
    if (RowsIn(window) <= 1) {
      int64_t block = -1, pairs = 0;
      ForEachCell(window, [&](int64_t b, int64_t n) {
        if (b != block && block >= 0) runs.Add(block, is_full(block, pairs));
        pairs = (b == block ? pairs : 0) + n;
        block = b;
      });
      if (block >= 0) runs.Add(block, is_full(block, pairs));
    } else if (keys.size() > 0) {
      const int64_t first = keys.begin / kBlockTokens;
      std::vector<int32_t> pairs(static_cast<size_t>(BlocksOf(keys.end) - first));
      ForEachCell(window, [&](int64_t b, int64_t n) { pairs[b - first] += static_cast<int>(n); });
      for (size_t b = 0; b < pairs.size(); ++b) {
        const int64_t block = first + static_cast<int64_t>(b);
        if (pairs[b] > 0) runs.Add(block, is_full(block, pairs[b]));
      }
    }
    runs.Finish();
  }

  void Mask(const ShapeWindow& window, int64_t q_block, int64_t k_block,
            uint64_t mask[64]) const override {
    std::fill(mask, mask + kBlockTokens, 0);
    const int64_t first_q = q_block * kBlockTokens, first_k = k_block * kBlockTokens;
    ForEachRow(window, [&](const ListedRow& row) {
      uint64_t bits = 0;
      ForEachRangeOf(row, {window.k_begin, window.k_end}, [&](TokenRange tokens) {
        bits |= ~uint64_t{0} >> (kBlockTokens - tokens.size()) << (tokens.begin - first_k);
      });
      std::fill(mask + (row.q.begin - first_q), mask + (row.q.end - first_q), bits);
    });
  }

  absl::optional<int64_t> CountPairs(const ShapeWindow& window) const override {
    int64_t pairs = 0;
    ForEachRow(window, [&](const ListedRow& row) {
      ForEachRangeOf(row, {window.k_begin, window.k_end},
                     [&](TokenRange tokens) { pairs += row.q.size() * tokens.size(); });
    });
    return pairs;
  }

  BlockSet Unneeded(int64_t, int64_t) const override { return {}; }  // a later call may bring any

  bool Equals(const PatternNode& other) const override {
    const Listed* same = dynamic_cast<const Listed*>(&other);
    if (same != nullptr && same->slashes_ != slashes_) return false;
    if (same == nullptr || list_ == nullptr || same->list_ == nullptr) {
      return same != nullptr && list_ == same->list_;
    }
    return KeyList::Same(*list_, head_, *same->list_, same->head_);
  }

 private:
  static uint64_t HashOf(const KeyList* list, int head) {
    return list == nullptr ? 0 : list->hash(head);
  }

  // How many rows of the list the window's queries have.
  int64_t RowsIn(const ShapeWindow& window) const {
    int64_t rows = 0;
    ForEachRow(window, [&rows](const ListedRow&) { ++rows; });
    return rows;
  }

  template <typename Fn>
  void ForEachRow(const ShapeWindow& window, Fn fn) const {
    if (list_ == nullptr) return;
    const TokenRange& known = list_->queries();
    const int64_t q_end = std::min(window.q_end, known.end);
    if (slashes_) {
      const int64_t tokens = list_->data().block_tokens;
      for (int64_t q = window.q_begin; q < q_end;) {
        const int64_t block = q / tokens * tokens, end = std::min(q_end, block + tokens);
        fn(ListedRow{{q, end}, list_->Slashes(head_), block});
        q = end;
      }
      return;
    }
    for (int64_t q = std::max(window.q_begin, known.begin); q < q_end;) {
      const int64_t row = list_->RowOf(q);
      const int64_t end = std::min(q_end, known.begin + (row + 1) * list_->row_tokens());
      fn(ListedRow{{q, end}, list_->Keys(head_, row)});
      q = end;
    }
  }

  template <typename Fn>
  void ForEachRangeOf(const ListedRow& row, TokenRange window, Fn fn) const {
    if (slashes_) return ForEachSlash(row.keys, row.block, list_->data().block_tokens, window, fn);
    ForEachRange(row.keys, list_->unit_tokens(), window, fn);
  }

  // fn(block, pairs) for what each row shows of each block; blocks of a row ascend.
  template <typename Fn>
  void ForEachCell(const ShapeWindow& window, Fn fn) const {
    ForEachRow(window, [&](const ListedRow& row) {
      ForEachRangeOf(row, {window.k_begin, window.k_end}, [&](TokenRange tokens) {
        for (int64_t begin = tokens.begin; begin < tokens.end;) {
          const int64_t block = begin / kBlockTokens;
          const int64_t end = std::min(tokens.end, (block + 1) * kBlockTokens);
          fn(block, row.q.size() * (end - begin));
          begin = end;
        }
      });
    });
  }

  const std::shared_ptr<const KeyList> list_;
  const int head_;
  const bool slashes_;  // else its keys
};

absl::StatusOr<Rules> ReadList(PatternReader& reader) {
  constexpr size_t kNameBytesMax = 64;
  ANNULUS_RETURN_IF_ERROR(reader.Expect('('));
  const absl::string_view name = reader.Word();
  if (name.empty() || absl::ascii_isdigit(name[0]) || name.size() > kNameBytesMax) {
    return reader.Expected(
        "the name of a list: letters, digits and _, the first no digit, 64 at most");
  }
  reader.Take(name);
  if (!reader.Accept(')')) return reader.Expected("\")\"");
  return reader.RulesOfList(name);
}

}  // namespace

absl::Span<const PatternWord> ListWords() {
  static constexpr PatternWord kWords[] = {
      {"list", "list(name)",
       "keys that come as data: blocks or tokens, by query, block of queries or for all, or "
       "verticals "
       "and slashes; by head",
       "", "", ReadList},
  };
  return kWords;
}

NodePtr MakeListed(std::shared_ptr<const KeyList> list, int head) {
  if (list == nullptr || !list->is_vertical_slash()) {
    return std::make_shared<Listed>(std::move(list), head, /*slashes=*/false);
  }
  return MakeUnion({std::make_shared<Listed>(list, head, /*slashes=*/false),
                    std::make_shared<Listed>(list, head, /*slashes=*/true)});
}

}  // namespace annulus
