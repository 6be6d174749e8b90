// Which keys each query sees, as data: what list(name) in a pattern stands for. A caller's mask, or
// what the indexer of its model has chosen. Plain values.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace annulus {

// Lists lie in rows: one for each query, one for each block of queries, or one for all. A row names
// blocks of `block_tokens` tokens, or single tokens, by their absolute numbers.
//
// kVerticalSlash has two rows for each head, for all queries, of single tokens: keys that every
// query sees, and distances d, of which each gives a block of queries that begins at b, a multiple
// of block_tokens, the keys from b − d to before b − d + block_tokens (MInference, 2407.02490).
struct KeyListData {
  enum class Unit { kBlocks, kTokens };  // what `keys` number
  enum class Rows { kToken, kBlock, kAll, kVerticalSlash };

  Unit unit = Unit::kBlocks;
  Rows rows = Rows::kAll;
  int64_t block_tokens = 64;  // of a block of keys, and of a block of queries
  int heads = 1;              // that have lists of their own: 1 (for all), KV heads or query heads
  // The position of the first query that has a row; where rows are blocks, of that block's begin.
  // Of no meaning where rows are for all.
  int64_t q_begin = 0;
  // Row r of head h sees keys[begin[h·rows + r]] up to before keys[begin[h·rows + r + 1]], which
  // ascend. Every query of a call needs a row.
  std::vector<int64_t> begin = {};
  std::vector<int32_t> keys = {};

  int64_t size_bytes() const {
    return static_cast<int64_t>(begin.size() * sizeof(int64_t) + keys.size() * sizeof(int32_t));
  }
};

// Names the data of a list that many calls bring: the service keeps it as long as it has room, and
// the client sends it again only when it is not kept. The data of one handle does not change.
struct ListHandle {
  uint64_t high = 0;
  uint64_t low = 0;

  bool given() const { return high != 0 || low != 0; }
  friend auto operator<=>(const ListHandle&, const ListHandle&) = default;
};

// One that nobody else has: random. Thread-safe.
ListHandle NewListHandle();

// What list(name) in the pattern of a call stands for. Its data is shared, so that many calls bring
// the same, and does not change.
struct CallList {
  std::string name;
  std::shared_ptr<const KeyListData> data;
  ListHandle handle = {};  // none: the data is for this call alone
};

}  // namespace annulus
