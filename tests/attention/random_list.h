// Random lists with their meaning, which is a table of what is seen, head by head.
#pragma once

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "attention/key_list.h"
#include "base/rng.h"

namespace annulus {

using PairRule = std::function<bool(int64_t head, int64_t q, int64_t k)>;

// Random lists of `heads` heads for any queries below q_end, and what they mean.
struct RandomList {
  KeyListData data;
  PairRule allows;
};

// Keys that all see, and distances at which blocks of queries see a block of keys.
inline RandomList MakeVerticalSlash(Rng& rng, int heads, int64_t tokens) {
  constexpr int64_t kBlocks[] = {1, 16, 64, 64, 64, 100, 128};
  RandomList list;
  KeyListData& data = list.data;
  data.unit = KeyListData::Unit::kTokens;
  data.rows = KeyListData::Rows::kVerticalSlash;
  data.block_tokens = kBlocks[rng.Below(std::size(kBlocks))];
  data.heads = heads;
  data.begin = {0};
  std::vector<std::vector<bool>> named;  // by head: keys, then distances
  for (int row = 0; row < 2 * heads; ++row) {
    auto& of_row = named.emplace_back(static_cast<size_t>(tokens));
    const uint64_t every = rng.Below(8) == 0 ? 1 : 4 + rng.Below(60);
    for (int64_t i = 0; i < tokens && rng.Below(500) != 0; ++i) {
      if (rng.Below(every) != 0) continue;
      of_row[static_cast<size_t>(i)] = true;
      data.keys.push_back(static_cast<int32_t>(i));
    }
    data.begin.push_back(static_cast<int64_t>(data.keys.size()));
  }
  const int64_t block = data.block_tokens;
  list.allows = [=, named = std::move(named)](int64_t head, int64_t q, int64_t k) {
    const auto row = static_cast<size_t>(heads == 1 ? 0 : 2 * head);
    if (k < tokens && named[row][static_cast<size_t>(k)]) return true;
    for (int64_t d = 0; d < tokens; ++d) {
      const int64_t begin = q / block * block - d;
      if (begin <= k && k < begin + block && named[row + 1][static_cast<size_t>(d)]) return true;
    }
    return false;
  };
  return list;
}

inline RandomList MakeRandomList(Rng& rng, int heads, int64_t tokens, int64_t q_end) {
  if (rng.Below(5) == 0) return MakeVerticalSlash(rng, heads, tokens);
  constexpr int64_t kBlocks[] = {1, 7, 16, 64, 64, 64, 100, 128, 192};
  RandomList list;
  KeyListData& data = list.data;
  data.unit = rng.Below(4) == 0 ? KeyListData::Unit::kTokens : KeyListData::Unit::kBlocks;
  data.rows = static_cast<KeyListData::Rows>(rng.Below(3));
  data.block_tokens = kBlocks[rng.Below(std::size(kBlocks))];
  data.heads = heads;
  const int64_t unit = data.unit == KeyListData::Unit::kTokens ? 1 : data.block_tokens;
  const int64_t row_tokens = data.rows == KeyListData::Rows::kToken   ? 1
                             : data.rows == KeyListData::Rows::kBlock ? data.block_tokens
                                                                      : q_end;
  if (data.rows != KeyListData::Rows::kAll && rng.Below(2) == 0) {
    data.q_begin = rng.Below(3) * row_tokens;
  }
  const int64_t q_begin = data.q_begin;
  const int64_t rows = std::max<int64_t>(1, (q_end - q_begin + row_tokens - 1) / row_tokens);
  const int64_t units = (tokens + unit - 1) / unit;
  // By head, row and unit.
  std::vector<bool> seen(static_cast<size_t>(heads * rows * units));
  data.begin = {0};
  for (int64_t row = 0; row < heads * rows; ++row) {
    // Runs of what is seen and what is not, short or long, or nothing at all.
    const int64_t longest = rng.Below(4) == 0 ? units : 1 + rng.Below(4);
    bool sees = rng.Below(2) == 0;
    int64_t left = rng.Between(1, longest);
    const bool none = rng.Below(8) == 0;
    for (int64_t u = 0; u < units && !none; ++u, --left) {
      if (left == 0) {
        sees = !sees;
        left = rng.Between(1, longest);
      }
      if (!sees) continue;
      seen[static_cast<size_t>(row * units + u)] = true;
      data.keys.push_back(static_cast<int32_t>(u));
    }
    data.begin.push_back(static_cast<int64_t>(data.keys.size()));
  }
  list.allows = [=, seen = std::move(seen)](int64_t head, int64_t q, int64_t k) {
    const int64_t row = (q - q_begin) / row_tokens;
    if (q < q_begin || row >= rows || k / unit >= units) return false;
    return seen[static_cast<size_t>(((heads == 1 ? 0 : head) * rows + row) * units + k / unit)] ==
           true;
  };
  return list;
}

}  // namespace annulus
