// flexprefill(gamma[,tau=0.1][,min=1024]): FlexPrefill (2502.20766 §3, Algorithms 1 to 4, and the
// code published with it), by query head, in blocks of 128 tokens.
//
// Of a call's last 128 queries (all, where there are fewer) each has its softmax over all keys up
// to itself. A column is a block of keys, and its share is the part of these weights that falls on
// it; a diagonal is the distances q − k from 128·d to 128·d + 127, and has a share alike. Beside
// them stands an estimate of the columns' shares: the softmax, over the blocks, of the scores that
// the mean of these queries gives the mean keys. A head whose estimate is right, which is where the
// square root of the Jensen-Shannon divergence (natural logarithms) of estimate and shares is below
// tau, is query-aware; others are vertical-slash.
//
// A vertical-slash head sees the columns and the diagonals of the largest shares, the first column
// and the nearest diagonal before all others, of each as many as have `gamma` of the sum, and
// blocks for `min` tokens at least. Diagonal d shows block i of queries block i − d of keys. A
// query-aware head sees columns and diagonals for `min` tokens, and of all pairs of a block of
// queries and a block of keys up to it those of the largest weights, until they have gamma of the
// sum of all: a pair's is its part of the softmax, over the blocks of keys up to that of the
// queries, of the scores that the mean of the block's queries gives the mean keys. What a block of
// queries sees are whole blocks, each query the keys up to itself.
//
// Ours, where the paper says nothing. Of equal ones the lowest comes first: the nearest diagonal,
// the lower block of queries, then the lower of keys. Blocks lie at multiples of 128 from position
// 0 on, those of distances from 0; a mean is that of the queries that the call brings, and of the
// keys up to its last query. A chunk of a prompt is a call of its own: `gamma` is of its own pairs.
// Shares, means, scores and pairs' weights are rounded to f32. The paper takes single columns and
// diagonals; as its code we take whole blocks, but where that counts the tokens that have gamma and
// takes as many blocks as they would fill, and stops before the pair that reaches gamma, here the
// blocks that are seen have it. What the code adds to the paper is the order of the first column
// and the nearest diagonal, `min`, and that query-aware heads see these, too.
//
// The published gamma: 0.9 to 0.95; tau: 0.1; min: 1,024. For prompts alone: a step with this word
// is refused.
#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/column_selector.h"
#include "attention/key_list.h"
#include "attention/patterns/word.h"
#include "attention/select/scores.h"
#include "attention/select/softmax.h"
#include "attention/select/unit_argument.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr int64_t kLastQueries = 128;
constexpr int64_t kBlock = kSpanTokens;
constexpr int64_t kTauDefault = PatternReader::kDecimalParts / 10;
constexpr int64_t kMinDefault = 1024;

// The places of the largest weights, the lowest of equal ones first: as many as have `share` of
// the sum. The first `forced` come before all others.
std::vector<int64_t> Cover(absl::Span<const float> weights, int64_t forced, double share,
                           int64_t least) {
  std::vector<int64_t> places(weights.size());
  double sum = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    places[i] = static_cast<int64_t>(i);
    sum += weights[i];
  }
  std::sort(places.begin() + forced, places.end(), [&](int64_t a, int64_t b) {
    return weights[a] > weights[b] || (weights[a] == weights[b] && a < b);
  });
  double seen = 0;
  int64_t count = 0;
  while (count < std::ssize(places) && (count < least || seen < share * sum)) {
    seen += weights[places[count++]];
  }
  places.resize(static_cast<size_t>(count));
  return places;
}

double RootOfDivergence(absl::Span<const double> p, absl::Span<const float> q) {
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double mean = (p[i] + q[i]) / 2;
    if (p[i] > 0) sum += p[i] * std::log(p[i] / mean);
    if (q[i] > 0) sum += q[i] * std::log(q[i] / mean);
  }
  return std::sqrt(std::max(0.0, sum / 2));
}

// One query head of a prompt.
class Head {
 public:
  Head(const PromptWeights& of, int head)
      : of_(of),
        head_(head),
        blocks_(of.spans()),
        dim_(static_cast<int>(of.q.dim)),
        means_(of.key_means.subspan(
            static_cast<size_t>(head / (of.heads() / of.kv_heads) * blocks_ * dim_),
            static_cast<size_t>(blocks_ * dim_))) {}

  int64_t first_row() const { return of_.queries.begin / kBlock; }  // a block of queries
  int64_t rows() const { return blocks_ - first_row(); }
  TokenRange Last() const {
    return {std::max(of_.queries.begin, of_.queries.end - kLastQueries), of_.queries.end};
  }
  TokenRange Row(int64_t block) const {
    return {std::max(of_.queries.begin, block * kBlock),
            std::min(of_.queries.end, (block + 1) * kBlock)};
  }
  std::vector<float> Columns() const { return Shares(of_.column_spans); }
  std::vector<float> Diagonals() const { return Shares(of_.diagonal_spans); }

  // The softmax of the scores that the mean of some queries gives the first `blocks` mean keys.
  // Absent where f32 does not hold them.
  std::optional<std::vector<double>> Estimate(TokenRange queries, int64_t blocks) const {
    const std::vector<double> q = MeanOf(queries);
    std::vector<float> scores(static_cast<size_t>(blocks));
    Scores(q.data(), 1, dim_, PlacesOf(means_.data(), blocks, dim_), scores.data());
    for (const float score : scores) {
      if (!std::isfinite(score)) return std::nullopt;
    }
    std::vector<double> weights(scores.size());
    Softmax(scores, std::fabs(of_.scale), absl::MakeSpan(weights));
    return weights;
  }

 private:
  std::vector<float> Shares(absl::Span<const uint64_t> spans) const {
    const double unit = kWeightUnit / static_cast<double>(Last().size());
    std::vector<float> shares;
    for (const uint64_t weight : spans.subspan(static_cast<size_t>(head_ * blocks_), blocks_)) {
      shares.push_back(static_cast<float>(static_cast<double>(weight) * unit));
    }
    return shares;
  }

  // With the sign of the scale.
  std::vector<double> MeanOf(TokenRange queries) const {
    const auto dims = static_cast<size_t>(dim_);
    std::vector<std::byte> rounded(dims * SizeOf(of_.dtype));
    std::vector<float> row(dims);
    std::vector<double> mean(dims);
    for (int64_t at = queries.begin; at < queries.end; ++at) {
      const std::byte* const from = of_.q.Row(at - of_.queries.begin, head_);
      Convert(from, of_.q.dtype, rounded.data(), of_.dtype, dim_);
      Convert(rounded.data(), of_.dtype, row.data(), DType::kF32, dim_);
      for (size_t c = 0; c < dims; ++c) mean[c] += row[c];
    }
    const double count = std::copysign(static_cast<double>(queries.size()), of_.scale);
    for (double& value : mean) value = static_cast<float>(value / count);
    return mean;
  }

  const PromptWeights& of_;
  const int head_;
  const int64_t blocks_;
  const int dim_;
  const absl::Span<const float> means_;  // [blocks, dim]
};

class FlexPrefill final : public ColumnSelector {
 public:
  FlexPrefill(const PatternReader::Value& gamma, const PatternReader::Value& tau, int64_t least)
      : ColumnSelector(absl::StrCat("flexprefill(", gamma.DecimalText(), ",", tau.DecimalText(),
                                    ",", least, ")"),
                       ColumnTrip::kSpans, kLastQueries, kBlock),
        gamma_(gamma.decimal()),
        tau_(tau.decimal()),
        least_((least - 1) / kBlock + 1) {}

  // All pairs may be seen.
  absl::Status CheckCall(TokenRange queries, int heads) const override {
    const int64_t first = queries.begin / kBlock, end = (queries.end - 1) / kBlock + 1;
    const int64_t pairs = (first + 1 + end) * (end - first) / 2, most = kListKeysMax / heads;
    if (pairs <= most) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "pattern: ", name(), ": ", pairs, " pairs of blocks a head for ", queries.size(),
        " queries; expected at most list_keys_max, ", most, ": ask for fewer at once"));
  }

  absl::StatusOr<KeyListData> Pick(const PromptWeights& weights) const override {
    KeyListData list;
    list.rows = KeyListData::Rows::kBlock;
    list.block_tokens = kBlock;
    list.heads = weights.heads();
    list.q_begin = weights.queries.begin / kBlock * kBlock;
    list.begin = {0};
    for (int head = 0; head < list.heads; ++head) {
      const Head of(weights, head);
      ANNULUS_ASSIGN_OR_RETURN(const auto seen, SeenBy(of, head));
      for (int64_t row = 0; row < of.rows(); ++row) {
        for (int64_t block = 0; block < weights.spans(); ++block) {
          if (seen[row * weights.spans() + block]) list.keys.push_back(static_cast<int>(block));
        }
        list.begin.push_back(std::ssize(list.keys));
      }
    }
    return list;
  }

 private:
  // Whether each row shows each block: [rows, blocks].
  absl::StatusOr<std::vector<bool>> SeenBy(const Head& of, int head) const {
    const std::vector<float> columns = of.Columns(), diagonals = of.Diagonals();
    const int64_t blocks = std::ssize(columns);
    const auto estimate = of.Estimate(of.Last(), blocks);
    if (!estimate.has_value()) return BeyondF32(of.Last(), head);
    const bool query_aware = RootOfDivergence(*estimate, columns) < tau_;
    const double share = query_aware ? 0 : gamma_;
    std::vector<bool> seen(static_cast<size_t>(of.rows() * blocks));
    for (const int64_t column : Cover(columns, 1, share, least_)) {
      for (int64_t row = 0; row < of.rows(); ++row) {
        if (column <= of.first_row() + row) seen[row * blocks + column] = true;
      }
    }
    for (const int64_t distance : Cover(diagonals, 1, share, least_)) {
      for (int64_t row = 0; row < of.rows(); ++row) {
        const int64_t block = of.first_row() + row - distance;
        if (block >= 0) seen[row * blocks + block] = true;
      }
    }
    if (query_aware) ANNULUS_RETURN_IF_ERROR(AddPairs(of, head, &seen));
    return seen;
  }

  absl::Status AddPairs(const Head& of, int head, std::vector<bool>* seen) const {
    std::vector<float> weights;   // of the pairs of each row in turn
    std::vector<int64_t> places;  // of them in `seen`
    const int64_t blocks = std::ssize(*seen) / of.rows();
    for (int64_t row = 0; row < of.rows(); ++row) {
      const TokenRange queries = of.Row(of.first_row() + row);
      const auto estimate = of.Estimate(queries, of.first_row() + row + 1);
      if (!estimate.has_value()) return BeyondF32(queries, head);
      weights.insert(weights.end(), estimate->begin(), estimate->end());
      for (int64_t block = 0; block < std::ssize(*estimate); ++block) {
        places.push_back(row * blocks + block);
      }
    }
    for (const int64_t pair : Cover(weights, 0, gamma_, 0)) (*seen)[places[pair]] = true;
    return absl::OkStatus();
  }

  absl::Status BeyondF32(TokenRange queries, int head) const {
    return absl::InvalidArgumentError(
        absl::StrCat("pattern: ", name(), ": the mean of the queries at ", queries.begin, " to ",
                     queries.end - 1, ", head ", head,
                     " scores a block beyond what f32 holds; expected finite scores"));
  }

  const double gamma_;
  const double tau_;
  const int64_t least_;  // blocks
};

absl::StatusOr<Rules> ReadFlexPrefill(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(
      auto values, reader.ReadArguments({{.name = "gamma", .required = true, .decimal = true},
                                         {.name = "tau", .decimal = true},
                                         {.name = "min", .least = 1}}));
  if (!values[1].given) values[1].numbers = {kTauDefault};
  if (!values[2].given) values[2].numbers = {kMinDefault};
  ANNULUS_RETURN_IF_ERROR(CheckPicks(reader, values[2]));
  return reader.RulesOfSelector(
      std::make_shared<FlexPrefill>(values[0], values[1], values[2].number()));
}

}  // namespace

absl::Span<const PatternWord> FlexPrefillWords() {
  static constexpr PatternWord kWords[] = {
      {"flexprefill", "flexprefill(gamma[,tau=0.1][,min=1024])",
       "in a prompt, by query head, 128-token blocks that have gamma of the weight: columns and "
       "diagonals by what its last 128 queries see, or, where mean queries and keys estimate that "
       "within tau, pairs of blocks by theirs; the first column and the nearest diagonal always, "
       "min tokens at least",
       "2502.20766 §3", "", ReadFlexPrefill},
  };
  return kWords;
}

}  // namespace annulus
