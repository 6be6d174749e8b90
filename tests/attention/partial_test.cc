#include "attention/partial.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "attention/merge_limit.h"
#include "base/rng.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr int kDim = 5;

// Softmax over the keys `picked` of one row with given scores and values, in float64.
Partial Exact(const std::vector<double>& scores, const std::vector<double>& values,
              const std::vector<size_t>& picked) {
  Partial partial(1, 1, kDim);
  if (picked.empty()) return partial;
  double top = scores[picked[0]];
  for (size_t i : picked) top = std::max(top, scores[i]);
  double sum = 0;
  double out[kDim] = {};
  for (size_t i : picked) {
    const double weight = std::exp(scores[i] - top);
    sum += weight;
    for (int c = 0; c < kDim; ++c) out[c] += weight * values[i * kDim + c];
  }
  for (int c = 0; c < kDim; ++c) partial.view().out[c] = static_cast<float>(out[c] / sum);
  partial.view().lse[0] = static_cast<float>(top + std::log(sum));
  return partial;
}

void CheckClose(Partial& a, Partial& b) {
  REQUIRE(a.view().lse[0] == Approx(b.view().lse[0]).margin(2e-6));
  for (int c = 0; c < kDim; ++c) {
    REQUIRE(a.view().out[c] == Approx(b.view().out[c]).margin(4e-6));
  }
}

}  // namespace

TEST_CASE("any split of the keys, merged in any order, gives the whole") {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    CAPTURE(seed);
    Rng rng(seed);
    const auto keys = static_cast<size_t>(rng.Between(1, 40));
    std::vector<double> scores(keys);
    std::vector<double> values(keys * kDim);
    const double spread = rng.Between(1, 30);
    for (double& s : scores) s = spread * rng.Normal();
    for (double& v : values) v = rng.Normal();
    const auto parts = static_cast<size_t>(rng.Between(1, 8));  // some may stay empty
    std::vector<std::vector<size_t>> split(parts);
    std::vector<size_t> all(keys);
    for (size_t i = 0; i < keys; ++i) {
      all[i] = i;
      split[rng.Below(parts)].push_back(i);
    }
    std::vector<Partial> partials;
    for (const auto& part : split) partials.push_back(Exact(scores, values, part));
    // A random merge tree: two random partials become one until one is left.
    while (partials.size() > 1) {
      const size_t i = rng.Below(partials.size());
      std::swap(partials[i], partials.back());
      Partial last = std::move(partials.back());
      partials.pop_back();
      Merge(partials[rng.Below(partials.size())].view(), last.view());
    }
    Partial whole = Exact(scores, values, all);
    CheckClose(partials[0], whole);
  }
}

TEST_CASE("the identity changes nothing and two identities make no NaN") {
  Partial a = Exact({1.0, 2.0}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, {0, 1});
  Partial same = Exact({1.0, 2.0}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, {0, 1});
  Partial identity(1, 1, kDim);
  Merge(a.view(), identity.view());
  CHECK(a.view().lse[0] == same.view().lse[0]);
  CHECK(std::equal(a.view().out, a.view().out + kDim, same.view().out));
  Merge(identity.view(), a.view());
  CHECK(identity.view().lse[0] == a.view().lse[0]);
  CHECK(std::equal(a.view().out, a.view().out + kDim, identity.view().out));

  Partial nothing(1, 1, kDim);
  Merge(nothing.view(), Partial(1, 1, kDim).view());
  CHECK(nothing.view().lse[0] == kNothing);
  CHECK(nothing.view().out[0] == 0);
  REQUIRE(Finalise(nothing.view()).ok());
}

TEST_CASE("scores far apart leave the larger side alone") {
  Partial a = Exact({3e4}, {1, 2, 3, 4, 5}, {0});
  Partial b = Exact({-3e4}, {9, 9, 9, 9, 9}, {0});
  Merge(b.view(), a.view());
  CHECK(b.view().lse[0] == 3e4f);
  CHECK(b.view().out[4] == 5);
}

TEST_CASE("parts that f32 cannot weigh against each other leave no answer") {
  for (const double score : {2e3, 4e3, 1e4, 3.3e4, 8.4e6, 1.3e8, 1e30, -1e4, -1e30}) {
    CAPTURE(score);
    // Two keys and one, all of the same score: 2:1, whose lse f32 cannot tell apart in the end.
    Partial merged = Exact({score, score}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {0, 1});
    Partial from = Exact({score}, {4, 4, 4, 4, 4}, {0});
    Merge(merged.view(), from.view());
    const std::optional<Overflow> overflow = EndRows(merged.view());
    if (std::abs(score) < double{kMergeLseMax}) {
      CHECK(overflow == std::nullopt);
      CHECK(std::abs(merged.view().out[0] - 2) < 2e-3);
    } else {
      CHECK(overflow == Overflow{0, 0, true});
    }
  }
}

TEST_CASE("finalise clears rows that saw nothing and refuses rows without an answer") {
  Partial partial(2, 3, kDim);
  for (int i = 0; i < 2 * 3 * kDim; ++i) partial.view().out[i] = 7;
  partial.view().lse[4] = 1.5f;
  REQUIRE(Finalise(partial.view()).ok());
  CHECK(partial.view().out[0] == 0);
  CHECK(partial.view().out[4 * kDim] == 7);

  for (const float beyond : {std::nanf(""), INFINITY, -INFINITY}) {
    partial.view().out[4 * kDim + 2] = beyond;
    CHECK(EndRows(partial.view()) == Overflow{1, 1, false});
    const absl::Status status = Finalise(partial.view());
    CHECK(status.code() == absl::StatusCode::kInvalidArgument);
    CHECK(status.message() ==
          "v, as q row 1, head 1 sees it: a sum of values passes f32's range; expected sums below "
          "3.4e38");
  }
  for (const float beyond : {std::nanf(""), INFINITY}) {
    partial.view().lse[2] = beyond;
    CHECK(FindOverflow(partial.view()) == Overflow{0, 2, true});
    CHECK(Finalise(partial.view()).message() ==
          "q row 0, head 2: a score passes f32's range; expected |scale·q·k|, and each sum on the "
          "way to it, below 2.3e38, and below 4096 where scores of several parts of the keys tie");
  }
}

TEST_CASE("a row without an answer has none after any merge") {
  const auto without = [](float lse, float out) {
    Partial bad(1, 1, kDim);
    bad.view().lse[0] = lse;
    bad.view().out[1] = out;
    return bad;
  };
  const auto of_score = [](Partial& partial) {
    const std::optional<Overflow> found = FindOverflow(partial.view());
    REQUIRE(found.has_value());
    return found->of_score;
  };
  for (const float lse : {-3e38f, -1.0f, 1.0f, 3e38f, -INFINITY, INFINITY, std::nanf("")}) {
    CAPTURE(lse);
    for (const float beyond : {std::nanf(""), INFINITY}) {
      Partial bad = without(beyond, 0);
      Partial other = without(lse, 0);
      Merge(bad.view(), other.view());
      CHECK(of_score(bad));
      bad = without(beyond, 0);
      Merge(other.view(), bad.view());
      CHECK(of_score(other));
      // Values that passed the range stay so where their row's weight is nothing, too.
      if (!std::isfinite(lse)) continue;
      bad = without(2.0f, beyond);
      other = without(lse, 1);
      Merge(bad.view(), other.view());
      CHECK_FALSE(of_score(bad));
      bad = without(2.0f, beyond);
      other = without(lse, 1);
      Merge(other.view(), bad.view());
      CHECK_FALSE(of_score(other));
    }
  }
}

TEST_CASE("rows of a view are those of the partial") {
  Partial partial(4, 2, 3);
  SetIdentity(partial.view());
  PartialView rows = partial.view().Rows(1, 2);
  rows.out[0] = 4;
  rows.lse[1] = 5;
  CHECK(partial.view().out[2 * 3] == 4);
  CHECK(partial.view().lse[2 + 1] == 5);
  CHECK(partial.out().tokens() == 4);
  CHECK(partial.lse().dim() == 1);
}

}  // namespace annulus
