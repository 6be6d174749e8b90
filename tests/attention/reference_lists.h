// The list that a word which chooses keys by data stands for, by its float64 reference.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "annulus/key_list.h"
#include "attention/reference/select.h"
#include "base/check.h"

namespace annulus::test {

// `word`: "moba(A,B)" or "quest(A,B)".
inline std::vector<int32_t> ReferenceUnits(const std::string& word, const ReferenceQuery& query) {
  long a = 0, b = 0;
  if (std::sscanf(word.c_str(), "moba(%ld,%ld)", &a, &b) == 2) return ReferenceMoba(query, a, b);
  ANNULUS_CHECK(std::sscanf(word.c_str(), "quest(%ld,%ld)", &a, &b) == 2);
  return ReferenceQuest(query, a, b);
}

// Of queries q [rows, heads, dim] from q_begin on, over the first kv_tokens of k.
inline CallList ReferenceList(const std::string& word, const TensorView& q, int64_t q_begin,
                              const TensorView& k, int64_t kv_tokens) {
  KeyListData data;
  long a = 0, b = 0;
  const bool moba = std::sscanf(word.c_str(), "moba(%ld,%ld)", &a, &b) == 2;
  if (!moba) ANNULUS_CHECK(std::sscanf(word.c_str(), "quest(%ld,%ld)", &a, &b) == 2);
  data.rows = KeyListData::Rows::kToken;
  data.block_tokens = moba ? a : b;
  data.heads = static_cast<int>(q.heads);
  data.q_begin = q_begin;
  data.begin = {0};
  for (int head = 0; head < data.heads; ++head) {
    for (int64_t row = 0; row < q.tokens; ++row) {
      const int kv_head = static_cast<int>(head / (q.heads / k.heads));
      const std::vector<int32_t> units =
          ReferenceUnits(word, {q, row, head, k, kv_head, q_begin + row, kv_tokens});
      data.keys.insert(data.keys.end(), units.begin(), units.end());
      data.begin.push_back(static_cast<int64_t>(data.keys.size()));
    }
  }
  return {word, std::make_shared<const KeyListData>(std::move(data))};
}

// The same of "dsa(A)" or "msa(A,B)": of index queries q [rows, heads, dim] and, for dsa, their
// weights [rows, heads], over the first kv_tokens of a track's rows k [tokens, 1, dim].
inline CallList ReferenceIndexList(const std::string& word, const TensorView& q,
                                   const std::vector<float>& weights, int64_t q_begin,
                                   const TensorView& k, int64_t kv_tokens) {
  KeyListData data;
  long a = 0, b = 0;
  const bool msa = std::sscanf(word.c_str(), "msa(%ld,%ld)", &a, &b) == 2;
  if (!msa) ANNULUS_CHECK(std::sscanf(word.c_str(), "dsa(%ld)", &a) == 1);
  data.rows = KeyListData::Rows::kToken;
  data.unit = msa ? KeyListData::Unit::kBlocks : KeyListData::Unit::kTokens;
  if (msa) data.block_tokens = a;
  data.heads = msa ? static_cast<int>(q.heads) : 1;
  data.q_begin = q_begin;
  data.begin = {0};
  for (int head = 0; head < data.heads; ++head) {
    for (int64_t row = 0; row < q.tokens; ++row) {
      const ReferenceQuery query{q, row, head, k, 0, q_begin + row, kv_tokens};
      const std::vector<int32_t> seen =
          msa ? ReferenceMsa(query, a, b) : ReferenceDsa(query, weights.data() + row * q.heads, a);
      data.keys.insert(data.keys.end(), seen.begin(), seen.end());
      data.begin.push_back(static_cast<int64_t>(data.keys.size()));
    }
  }
  return {word, std::make_shared<const KeyListData>(std::move(data))};
}

}  // namespace annulus::test
