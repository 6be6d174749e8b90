// minference(v,s): the vertical-slash pattern of MInference (2407.02490 §3.2, and its code).
//
// Of a call's last 64 queries (all, where there are fewer) each has its softmax over all keys up to
// itself. By query head, verticals are the max(v, 30) keys that get the most of these weights, the
// first 30 keys before all others; slashes are the max(s, 50) distances q − k that get the most,
// the nearest 100 before all others. Of equal ones the lowest counts first. Every query of the call
// sees the verticals up to itself; and a block of 64 queries that begins at b, a multiple of 64,
// sees for each slash d the keys from b − d to before b − d + 64, each query those up to itself.
//
// For prompts alone: the code attends densely in decode, so a step with this word is refused, and
// its caller names causal. v and s are those of a head's configuration, by heads(…) where they
// differ; each call, as a chunk of a prompt, chooses for itself. Where the code's slashes are less
// than 64 apart it also reads what lies between some of them, up to whole blocks: here a query
// block sees the blocks of its slashes alone. Which of the 100 nearest the code takes for s < 100
// is chance.
#include <algorithm>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/column_selector.h"
#include "attention/patterns/word.h"
#include "attention/select/unit_argument.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr int64_t kLastQueries = 64;
constexpr int64_t kBlock = 64;
constexpr int64_t kVerticalsMin = 30, kVerticalsFirst = 30;
constexpr int64_t kSlashesMin = 50, kSlashesFirst = 100;

// The `count` places of the largest values, ascending: the first `first` before all others, of
// equal ones the lowest.
template <typename Value>
std::vector<int32_t> Largest(absl::Span<const Value> values, int64_t count, int64_t first) {
  std::vector<int32_t> places(values.size());
  std::iota(places.begin(), places.end(), 0);
  const auto before = [&](int32_t a, int32_t b) {
    if ((a < first) != (b < first)) return a < first;
    if (a < first || values[a] == values[b]) return a < b;
    return values[a] > values[b];
  };
  if (count < std::ssize(places)) {
    std::nth_element(places.begin(), places.begin() + count, places.end(), before);
    places.resize(static_cast<size_t>(count));
  }
  std::sort(places.begin(), places.end());
  return places;
}

class MInference final : public ColumnSelector {
 public:
  MInference(int64_t verticals, int64_t slashes)
      : ColumnSelector(absl::StrCat("minference(", verticals, ",", slashes, ")"),
                       ColumnTrip::kDiagonals, kLastQueries, kBlock),
        verticals_(std::max(verticals, kVerticalsMin)),
        slashes_(std::max(slashes, kSlashesMin)) {}

  absl::StatusOr<KeyListData> Pick(const PromptWeights& weights) const override {
    KeyListData list;
    list.unit = KeyListData::Unit::kTokens;
    list.rows = KeyListData::Rows::kVerticalSlash;
    list.block_tokens = kBlock;
    list.heads = weights.heads();
    list.begin = {0};
    const auto tokens = static_cast<size_t>(weights.kv_tokens);
    for (size_t at = 0; at < weights.columns.size(); at += tokens) {
      for (const std::vector<int32_t>& row :
           {Largest(weights.columns.subspan(at, tokens), verticals_, kVerticalsFirst),
            Largest(weights.diagonals.subspan(at, tokens), slashes_, kSlashesFirst)}) {
        list.keys.insert(list.keys.end(), row.begin(), row.end());
        list.begin.push_back(std::ssize(list.keys));
      }
    }
    return list;
  }

 private:
  const int64_t verticals_;
  const int64_t slashes_;
};

absl::StatusOr<Rules> ReadMInference(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const auto values,
                           reader.ReadArguments({{"v", 1, true}, {"s", 1, true}}));
  for (const auto& value : values) ANNULUS_RETURN_IF_ERROR(CheckPicks(reader, value));
  return reader.RulesOfSelector(
      std::make_shared<MInference>(values[0].number(), values[1].number()));
}

}  // namespace

absl::Span<const PatternWord> MInferenceWords() {
  static constexpr PatternWord kWords[] = {
      {"minference", "minference(v,s)",
       "in a prompt: the v keys (30 at least) and the 64-token diagonals at the s distances (50 at "
       "least) that its last 64 queries weigh most, the first 30 keys and the nearest 100 "
       "distances before all others, by query head",
       "2407.02490 §3.2", "", ReadMInference},
  };
  return kWords;
}

}  // namespace annulus
