// The lists of minference(v,s) by its float64 reference, as tokens that each query sees.
#pragma once

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "annulus/key_list.h"
#include "attention/reference/vertical_slash.h"

namespace annulus::test {

// q [rows, heads, dim] at q_begin and on, of which the last 64 choose.
inline CallList ReferenceMInferenceList(int64_t v, int64_t s, const TensorView& q, int64_t q_begin,
                                        const TensorView& k, int64_t kv_tokens, float scale) {
  KeyListData data;
  data.unit = KeyListData::Unit::kTokens;
  data.rows = KeyListData::Rows::kToken;
  data.heads = static_cast<int>(q.heads);
  data.q_begin = q_begin;
  data.begin = {0};
  const int64_t last = std::min<int64_t>(64, q.tokens), before = q.tokens - last;
  for (int head = 0; head < data.heads; ++head) {
    const int kv_head = head / static_cast<int>(q.heads / k.heads);
    const auto seen =
        ReferenceMInference(ReferenceDiagonals(q.Tokens(before, last), q_begin + before, head, k,
                                               kv_head, kv_tokens, scale),
                            v, s, kv_tokens);
    for (int64_t row = q_begin; row < q_begin + q.tokens; ++row) {
      for (int64_t key = 0; key < kv_tokens; ++key) {
        if (seen[row][key]) data.keys.push_back(static_cast<int32_t>(key));
      }
      data.begin.push_back(std::ssize(data.keys));
    }
  }
  return {absl::StrCat("minference(", v, ",", s, ")"),
          std::make_shared<const KeyListData>(std::move(data))};
}

}  // namespace annulus::test
