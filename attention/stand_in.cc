#include "attention/stand_in.h"

#include <algorithm>

namespace annulus {

KeyListData StandInFor(const Selector& word, TokenRange queries, int64_t kv_tokens) {
  KeyListData data;
  data.rows = KeyListData::Rows::kToken;
  if (word.unit_tokens() == 1) {
    data.unit = KeyListData::Unit::kTokens;
  } else {
    data.block_tokens = word.unit_tokens();
  }
  data.q_begin = queries.begin;
  data.begin = {0};
  data.begin.reserve(static_cast<size_t>(queries.size()) + 1);
  for (int64_t q = queries.begin; q < queries.end; ++q) {
    const int64_t own = word.OwnUnit(q, kv_tokens);
    for (int64_t unit = std::max<int64_t>(0, own + 1 - word.picks()); unit <= own; ++unit) {
      data.keys.push_back(static_cast<int32_t>(unit));
    }
    data.begin.push_back(static_cast<int64_t>(data.keys.size()));
  }
  return data;
}

}  // namespace annulus
