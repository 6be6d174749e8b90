#include "runtime/cli/quality/tasks.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/rng.h"

namespace annulus {
namespace {

// Which rows a seed is for.
enum class Kind : uint64_t { kName, kWord, kOther };

Rng RngOf(Kind kind, int id, uint64_t seed) {
  return Rng(seed ^ (static_cast<uint64_t>(kind) << 56) ^ (static_cast<uint64_t>(id) << 20));
}

// A name is large in a few dims and 0 in the others: keys of models have their channels, too.
void FillName(int id, uint64_t seed, double score, float* row, int dim) {
  constexpr int kDims = 8;
  Rng rng = RngOf(Kind::kName, id, seed);
  std::fill_n(row, dim, 0.0f);
  const auto size =
      static_cast<float>(std::sqrt(score * std::sqrt(static_cast<double>(dim)) / kDims));
  for (int i = 0; i < kDims;) {
    float& value = row[rng.Below(static_cast<uint64_t>(dim))];
    if (value != 0) continue;
    value = rng.Below(2) == 0 ? size : -size;
    ++i;
  }
}

// ±1 in each dim.
void FillSigns(int word, uint64_t seed, float* row, int dim) {
  Rng rng = RngOf(Kind::kWord, word, seed);
  for (int at = 0; at < dim; at += 64) {
    const uint64_t bits = rng.Next();
    for (int i = at; i < std::min(dim, at + 64); ++i) {
      row[i] = (bits >> (i - at)) & 1 ? 1.0f : -1.0f;
    }
  }
}

// A tensor of the shape's dtype whose rows are what fill(token, head, row) makes.
template <typename Fill>
Tensor MakeRows(const TaskShape& shape, int64_t tokens, int heads, Fill fill) {
  Tensor tensor(shape.dtype, tokens, heads, shape.head_dim);
  std::vector<float> row(static_cast<size_t>(shape.head_dim));
  for (int64_t token = 0; token < tokens; ++token) {
    for (int head = 0; head < heads; ++head) {
      fill(token, head, row.data());
      const int64_t at = (token * heads + head) * shape.head_dim;
      Convert(row.data(), DType::kF32, tensor.data() + at * SizeOf(shape.dtype), shape.dtype,
              shape.head_dim);
    }
  }
  return tensor;
}

// The score of a name on its key, such that among names drawn at random it has all the weight but
// e^-3: a score is c on the key, and about c/sqrt(d) times a normal number on others, whose weights
// are e^(c²/2d) on average. The largest that helps is d.
double NameScore(const TaskShape& shape) {
  const double dim = shape.head_dim;
  double score = 0;
  for (int i = 0; i < 100; ++i) {
    score =
        std::min(dim, std::log(static_cast<double>(shape.tokens)) + 3 + score * score / (2 * dim));
  }
  return score;
}

// Rows of the names `ids`, in all heads alike.
Tensor Names(const TaskShape& shape, const std::vector<int>& ids, int heads, uint64_t seed) {
  const double score = NameScore(shape);
  return MakeRows(shape, static_cast<int64_t>(ids.size()), heads,
                  [&](int64_t token, int, float* row) {
                    FillName(ids[static_cast<size_t>(token)], seed, score, row, shape.head_dim);
                  });
}

// A context of a name and a word for each token.
KeysAndValues NamesAndWords(const TaskShape& shape, const std::vector<int>& names,
                            const std::vector<int>& words, uint64_t seed) {
  return {Names(shape, names, shape.kv_heads, seed),
          MakeRows(shape, shape.tokens, shape.kv_heads, [&](int64_t token, int, float* row) {
            FillSigns(words[static_cast<size_t>(token)], seed, row, shape.head_dim);
          })};
}

// `count` of the numbers from 0 to space − 1, each at most once, by weights (g + 1)^-0.99, in
// random order: the smallest of −log(u) / weight (Efraimidis and Spirakis).
std::vector<int64_t> DrawGaps(int64_t space, int64_t count, Rng& rng) {
  std::vector<std::pair<double, int64_t>> draws(static_cast<size_t>(space));
  for (int64_t gap = 0; gap < space; ++gap) {
    const double weight = std::pow(static_cast<double>(gap + 1), -0.99);
    draws[static_cast<size_t>(gap)] = {-std::log(1 - rng.Uniform()) / weight, gap};
  }
  std::partial_sort(draws.begin(), draws.begin() + count, draws.end());
  std::vector<int64_t> gaps;
  for (int64_t i = 0; i < count; ++i) gaps.push_back(draws[static_cast<size_t>(i)].second);
  return gaps;
}

std::vector<int> Shuffled(int count, Rng& rng) {
  std::vector<int> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  for (size_t i = ids.size(); i > 1; --i) std::swap(ids[i - 1], ids[rng.Below(i)]);
  return ids;
}

}  // namespace

std::vector<float> WordValue(int word, int head_dim, uint64_t seed) {
  std::vector<float> value(static_cast<size_t>(head_dim));
  FillSigns(word, seed, value.data(), head_dim);
  return value;
}

MassTask MakeMassTask(const TaskShape& shape, int64_t q_tokens, uint64_t seed) {
  constexpr int kSinks = 4;
  constexpr int kHeavyEvery = 256;
  constexpr double kLocal = 9, kSink = 10, kHeavy = 7;  // scores at distance 0, of a sink, …
  constexpr float kNoise = 0.5;
  Rng rng(seed);
  const int dim = shape.head_dim;
  const int turned = dim / 4 * 2;  // dims in pairs that turn with the position; then one for sinks
  // A row that has `local` of the score in the turned dims and `common` in the next one. Each KV
  // head turns more slowly than the one before.
  const auto fill = [&](int64_t token, int kv_head, double local, double common, float* row) {
    for (int i = 0; i < dim; ++i) row[i] = kNoise * rng.Normal();
    const double size = std::sqrt(local * std::sqrt(static_cast<double>(dim)) / (turned / 2.0));
    for (int i = 0; i < turned; i += 2) {
      const double angle = static_cast<double>(token) *
                           std::pow(1e4, -(static_cast<double>(i) / turned)) /
                           std::pow(4.0, kv_head);
      row[i] += static_cast<float>(size * std::cos(angle));
      row[i + 1] += static_cast<float>(size * std::sin(angle));
    }
    row[turned] = static_cast<float>(common * std::pow(static_cast<double>(dim), 0.25));
  };
  const auto draws = [&](int64_t token) {
    if (token < kSinks) return kSink;
    return Rng(seed ^ (static_cast<uint64_t>(Kind::kOther) << 56) ^ static_cast<uint64_t>(token))
                       .Below(kHeavyEvery) == 0
               ? kHeavy
               : 0.0;
  };
  const int group = shape.heads / shape.kv_heads;
  MassTask task;
  task.kv.k = MakeRows(
      shape, shape.tokens, shape.kv_heads,
      [&](int64_t token, int head, float* row) { fill(token, head, kLocal, draws(token), row); });
  task.kv.v = MakeRows(shape, shape.tokens, shape.kv_heads, [&](int64_t, int, float* row) {
    for (int i = 0; i < dim; ++i) row[i] = rng.Normal();
  });
  task.q = MakeRows(shape, q_tokens, shape.heads, [&](int64_t token, int head, float* row) {
    fill(shape.tokens - q_tokens + token, head / group, kLocal, 1, row);
  });
  return task;
}

RecallTask MakeNeedleTask(const TaskShape& shape, int depths, uint64_t seed) {
  Rng rng(seed);
  std::vector<int> names(static_cast<size_t>(shape.tokens));
  std::vector<int> words(names.size());
  for (size_t token = 0; token < names.size(); ++token) {
    names[token] = static_cast<int>(rng.Below(kWords / 2));
    words[token] = static_cast<int>(rng.Below(kWords / 2));
  }
  RecallTask task;
  for (int depth = 0; depth < depths; ++depth) {
    const int id = kWords / 2 + depth;
    const int64_t position = (2 * depth + 1) * shape.tokens / (2 * depths);
    names[static_cast<size_t>(position)] = words[static_cast<size_t>(position)] = id;
    task.asking.push_back({Names(shape, {id}, shape.heads, seed), {{0, position, id}}});
  }
  task.kv = NamesAndWords(shape, names, words, seed);
  return task;
}

RecallTask MakeMqarTask(const TaskShape& shape, uint64_t seed) {
  Rng rng(seed);
  const int64_t pairs = std::min<int64_t>(shape.tokens / 8, kWords / 2);
  const int64_t context = 2 * pairs;
  // Tokens from 1 on, as in the paper: keys are the lower half of the vocabulary, values the upper.
  const std::vector<int> keys = Shuffled(kWords / 2, rng);
  std::vector<int> tokens(static_cast<size_t>(shape.tokens));
  for (int& token : tokens) token = kWords + static_cast<int>(rng.Below(kWords));  // fillers
  const std::vector<int64_t> gaps = DrawGaps((shape.tokens - context) / 2, pairs, rng);
  RecallTask task;
  Asking asking;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int value = kWords / 2 + static_cast<int>(rng.Below(kWords / 2));
    tokens[static_cast<size_t>(2 * pair)] = keys[static_cast<size_t>(pair)];
    tokens[static_cast<size_t>(2 * pair + 1)] = value;
    const int64_t row = 2 * gaps[static_cast<size_t>(pair)];
    tokens[static_cast<size_t>(context + row)] = keys[static_cast<size_t>(pair)];
    asking.questions.push_back({row, 2 * pair + 1, value});
  }
  // A key is the name of the token after it.
  std::vector<int> names = tokens;
  std::rotate(names.rbegin(), names.rbegin() + 1, names.rend());
  task.kv = NamesAndWords(shape, names, tokens, seed);
  asking.q = Names(shape, {tokens.begin() + context, tokens.end()}, shape.heads, seed);
  task.asking.push_back(std::move(asking));
  return task;
}

}  // namespace annulus
