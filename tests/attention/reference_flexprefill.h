// The lists of flexprefill(gamma,tau,min) by its float64 reference.
#pragma once

#include <memory>
#include <string>

#include "annulus/key_list.h"
#include "attention/reference/flexprefill.h"

namespace annulus::test {

struct FlexPrefillWord {
  std::string text;  // with all its arguments
  double gamma = 0;
  double tau = 0;
  int64_t least = 0;
};

// q [rows, heads, dim] at q_begin and on. Counts the heads that are query-aware, if it is asked to.
inline CallList ReferenceFlexPrefillList(const FlexPrefillWord& word, const TensorView& q,
                                         int64_t q_begin, const TensorView& k, float scale,
                                         int* query_aware = nullptr) {
  KeyListData data;
  data.rows = KeyListData::Rows::kBlock;
  data.block_tokens = 128;
  data.heads = static_cast<int>(q.heads);
  data.q_begin = q_begin / 128 * 128;
  data.begin = {0};
  for (int head = 0; head < data.heads; ++head) {
    const ReferenceBlocks shown =
        ReferenceFlexPrefill(q, q_begin, head, k, head / static_cast<int>(q.heads / k.heads), scale,
                             word.gamma, word.tau, word.least);
    if (query_aware != nullptr) *query_aware += shown.query_aware ? 1 : 0;
    for (const std::vector<bool>& row : shown.seen) {
      for (size_t block = 0; block < row.size(); ++block) {
        if (row[block]) data.keys.push_back(static_cast<int32_t>(block));
      }
      data.begin.push_back(std::ssize(data.keys));
    }
  }
  return {word.text, std::make_shared<const KeyListData>(std::move(data))};
}

}  // namespace annulus::test
