// Scores and summaries: the same bits on every instruction set, and what is chosen of them in any
// order is the first by the order of candidates.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "attention/select/scores.h"
#include "attention/select/top_units.h"
#include "base/rng.h"
#include "tests/attention/contenders.h"
#include "tests/catch.h"

namespace annulus {
namespace {

TEST_CASE("scores have the same bits on every instruction set, however many come at once") {
  Rng rng(97);
  constexpr int kRows = 11, kSummaries = 21;
  for (const int width : {8, 16, 72, 256, 1152}) {
    std::vector<double> rows(static_cast<size_t>(kRows * width));
    std::vector<float> summaries(static_cast<size_t>(kSummaries * width));
    for (double& x : rows) x = static_cast<float>(rng.Normal() * std::exp2(rng.Normal() * 20));
    for (float& x : summaries) x = rng.Normal();
    // By the definition, without any vector.
    const auto expected = [&](int r, int s) {
      double sums[8] = {};
      for (int c = 0; c < width; ++c) {
        sums[c % 8] += rows[static_cast<size_t>(r * width + c)] *
                       double{summaries[static_cast<size_t>(s * width + c)]};
      }
      return static_cast<float>(((sums[0] + sums[4]) + (sums[2] + sums[6])) +
                                ((sums[1] + sums[5]) + (sums[3] + sums[7])));
    };
    ForEachSimdTarget([&] {
      for (const int count : {1, 3, 4, kRows}) {
        for (const int summary_count : {1, 2, 3, kSummaries}) {
          std::vector<float> scores(static_cast<size_t>(count * summary_count));
          Scores(rows.data(), count, width, PlacesOf(summaries.data(), summary_count, width),
                 scores.data());
          CAPTURE(width, count, summary_count);
          for (int s = 0; s < summary_count; ++s) {
            for (int r = 0; r < count; ++r) {
              const float score = scores[static_cast<size_t>(s * count + r)];
              const float of_definition = expected(r, s);
              REQUIRE(std::memcmp(&score, &of_definition, sizeof score) == 0);
            }
          }
        }
      }
    });
  }
}

TEST_CASE("weighed scores have the same bits on every instruction set, for any number of queries") {
  Rng rng(98);
  constexpr int kTokens = 5;
  for (const int count : {1, 3, 8, 13, 64}) {
    std::vector<float> dots(static_cast<size_t>(kTokens * count));
    std::vector<float> weights(static_cast<size_t>(count));
    for (float& x : dots) x = static_cast<float>(rng.Normal() * std::exp2(rng.Normal() * 10));
    for (float& x : weights) x = rng.Normal();
    ForEachSimdTarget([&] {
      std::vector<float> scores(kTokens);
      WeighedScores(dots.data(), kTokens, weights.data(), count, scores.data());
      for (int t = 0; t < kTokens; ++t) {
        CAPTURE(count, t);
        double sums[8] = {};
        for (int j = 0; j < count; ++j) {
          const float dot = dots[static_cast<size_t>(t * count + j)];
          sums[j % 8] += double{weights[static_cast<size_t>(j)]} * double{std::max(dot, 0.0f)};
        }
        const auto expected = static_cast<float>(((sums[0] + sums[4]) + (sums[2] + sums[6])) +
                                                 ((sums[1] + sums[5]) + (sums[3] + sums[7])));
        REQUIRE(std::memcmp(&scores[static_cast<size_t>(t)], &expected, sizeof expected) == 0);
      }
    });
  }
}

TEST_CASE("a score that is no number counts as the highest") {
  const double row[8] = {1, 1, 0, 0, 0, 0, 0, 0};
  const float infinity = std::numeric_limits<float>::infinity();
  const float summary[8] = {infinity, -infinity, 0, 0, 0, 0, 0, 0};
  float score = 0;
  Scores(row, 1, 8, {summary}, &score);
  CHECK(score == infinity);
}

TEST_CASE("of many candidates the first are kept, whatever their order and ties") {
  Rng rng(98);
  for (int round = 0; round < 200; ++round) {
    const auto limit = static_cast<int64_t>(rng.Below(40));
    const auto count = static_cast<int64_t>(rng.Below(2000));
    std::vector<Candidate> all;
    for (int32_t unit = 0; unit < count; ++unit) {
      all.push_back({static_cast<float>(rng.Below(round % 2 == 0 ? 5 : 1000)), unit});
    }
    for (size_t i = all.size(); i > 1; --i) std::swap(all[i - 1], all[rng.Below(i)]);
    TopUnits top(limit);
    for (const Candidate& candidate : all) top.Offer(candidate);
    std::vector<Candidate> kept = std::move(top).Take();
    std::sort(kept.begin(), kept.end(), Before);
    std::sort(all.begin(), all.end(), Before);
    all.resize(static_cast<size_t>(std::min(limit, count)));
    REQUIRE(kept.size() == all.size());
    for (size_t i = 0; i < all.size(); ++i) REQUIRE(kept[i].unit == all[i].unit);
  }
}

}  // namespace
}  // namespace annulus
