// The list that a word which chooses keys by data stands for, by its float64 reference.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "annulus/key_list.h"
#include "attention/reference/select.h"
#include "base/check.h"

namespace annulus::test {

// A word with all its arguments, and what its lists are.
struct ReferenceWord {
  explicit ReferenceWord(const std::string& text) : text(text) {
    const std::vector<std::string> parts = absl::StrSplit(text, absl::ByAnyChar("(,=)"));
    name = parts[0];
    for (size_t i = 1; i + 1 < parts.size(); ++i) {
      if (absl::ascii_isdigit(parts[i][0])) args.push_back(std::atof(parts[i].c_str()));
    }
  }
  int64_t At(size_t i) const { return static_cast<int64_t>(args.at(i)); }

  int64_t unit_tokens() const {
    if (name == "dsa") return 1;
    if (name == "xattention") return At(2);
    return At(name == "quest" || name == "nsa" || name == "seer" ? 1 : 0);
  }
  int64_t row_tokens() const {
    return name == "xattention" || name == "biformer" ? unit_tokens() : 1;
  }
  // How many heads have lists, of a q and a k.
  int ListsOf(const TensorView& q, const TensorView& k) const {
    if (name == "dsa" || name == "biformer") return 1;
    return static_cast<int>(name == "nsa" ? k.heads : q.heads);
  }

  std::string text;
  std::string name;
  std::vector<double> args;
};

// What the row of a list sees. `query.head` is the list's first query head, or its index query.
inline std::vector<int32_t> ReferenceUnits(const ReferenceWord& word, const ReferenceQuery& query,
                                           const float* weights = nullptr) {
  if (word.name == "moba") return ReferenceMoba(query, word.At(0), word.At(1));
  if (word.name == "quest") return ReferenceQuest(query, word.At(0), word.At(1));
  if (word.name == "nsa") return ReferenceNsa(query, word.At(0), word.At(1));
  if (word.name == "xattention") {
    return ReferenceXAttention(query, word.args.at(0), word.At(1), word.At(2));
  }
  if (word.name == "biformer") return ReferenceBiFormer(query, word.At(0), word.At(1));
  if (word.name == "seer") {
    const bool by_budget = word.args.at(0) >= 1;
    return ReferenceSeer(query, by_budget ? word.At(0) : 0, word.args.at(0), word.At(1));
  }
  if (word.name == "msa") return ReferenceMsa(query, word.At(0), word.At(1));
  ANNULUS_CHECK(word.name == "dsa");
  return ReferenceDsa(query, weights, word.At(0));
}

// Of queries q [rows, heads, dim] from q_begin on, over the first kv_tokens of k: of the context's
// keys, or, for words of an index, of the index queries and the track's rows k [tokens, 1, dim],
// and the queries' weights [rows, heads] for dsa.
inline CallList ReferenceList(const std::string& text, const TensorView& q, int64_t q_begin,
                              const TensorView& k, int64_t kv_tokens,
                              const std::vector<float>& weights = {}) {
  const ReferenceWord word(text);
  const int64_t row_tokens = word.row_tokens();
  KeyListData data;
  data.rows = row_tokens == 1 ? KeyListData::Rows::kToken : KeyListData::Rows::kBlock;
  data.unit = word.unit_tokens() == 1 ? KeyListData::Unit::kTokens : KeyListData::Unit::kBlocks;
  if (word.unit_tokens() > 1) data.block_tokens = word.unit_tokens();
  data.heads = word.ListsOf(q, k);
  data.q_begin = q_begin / row_tokens * row_tokens;
  data.begin = {0};
  for (int list = 0; list < data.heads; ++list) {
    const auto head = static_cast<int>(list * (q.heads / data.heads));
    for (int64_t row = 0, next = 0; row < q.tokens; row = next) {
      next = std::min(q.tokens, (q_begin + row) / row_tokens * row_tokens + row_tokens - q_begin);
      const ReferenceQuery query{.q = q,
                                 .row = row,
                                 .head = head,
                                 .k = k,
                                 .kv_head = static_cast<int>(head * k.heads / q.heads),
                                 .position = q_begin + row,
                                 .kv_tokens = kv_tokens};
      const std::vector<int32_t> units =
          ReferenceUnits(word, query, weights.empty() ? nullptr : weights.data() + row * q.heads);
      data.keys.insert(data.keys.end(), units.begin(), units.end());
      data.begin.push_back(static_cast<int64_t>(data.keys.size()));
    }
  }
  return {text, std::make_shared<const KeyListData>(std::move(data))};
}

}  // namespace annulus::test
