// What callers put together by themselves: merges, sinks and gates, against their definitions.
#include "annulus/partials.h"

#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/match.h"
#include "base/rng.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kRows = 5, kHeads = 3, kDim = 4;

struct Answer {
  Tensor out{DType::kF32, kRows, kHeads, kDim};
  Tensor lse{DType::kF32, kRows, kHeads, 1};
};

// Scores and values of some keys for every row and head, in f64.
struct Keys {
  Keys(Rng& rng, int64_t count) : keys(count) {
    for (int64_t i = 0; i < kRows * kHeads * count; ++i) scores.push_back(3 * rng.Normal());
    for (int64_t i = 0; i < kRows * kHeads * count * kDim; ++i) values.push_back(rng.Normal());
  }

  // Softmax over the keys [begin, end), with one more score that has no value.
  Answer Over(int64_t begin, int64_t end, double sink = -kInfinity) const {
    Answer answer;
    for (int64_t row = 0; row < kRows * kHeads; ++row) {
      double sum = std::exp(sink);
      std::vector<double> out(kDim);
      for (int64_t key = begin; key < end; ++key) {
        const double weight = std::exp(scores[static_cast<size_t>(row * keys + key)]);
        sum += weight;
        for (int64_t c = 0; c < kDim; ++c) {
          out[c] += weight * values[static_cast<size_t>((row * keys + key) * kDim + c)];
        }
      }
      answer.lse.f32()[row] = static_cast<float>(std::log(sum));
      for (int64_t c = 0; c < kDim && sum > 0; ++c) {
        answer.out.f32()[row * kDim + c] = static_cast<float>(out[c] / sum);
      }
    }
    return answer;
  }

  int64_t keys;
  std::vector<double> scores, values;
};

void CheckNear(const Tensor& got, const Tensor& want) {
  for (int64_t i = 0; i < want.view().size(); ++i) {
    CAPTURE(i);
    if (got.f32()[i] == want.f32()[i]) continue;
    CHECK(std::fabs(got.f32()[i] - want.f32()[i]) < 1e-6 * (1 + std::fabs(want.f32()[i])));
  }
}

TEST_CASE("partials: parts in any order, also strided and empty ones, merge to the whole") {
  Rng rng(5);
  const Keys keys(rng, 20);
  const Answer whole = keys.Over(0, 20);
  Answer into = keys.Over(7, 7);  // no keys: the identity
  for (const auto& [begin, end] : {std::pair{15, 20}, {0, 7}, {7, 7}, {7, 15}}) {
    const Answer part = keys.Over(begin, end);
    // Every second head of a wider tensor.
    Tensor wide(DType::kF32, kRows, 2 * kHeads, kDim);
    for (int64_t row = 0; row < kRows * kHeads; ++row) {
      std::copy_n(part.out.f32() + row * kDim, kDim, wide.f32() + 2 * row * kDim);
    }
    TensorView strided = wide;
    strided.heads = kHeads;
    strided.head_stride = 2 * kDim;
    REQUIRE(Merge(strided, part.lse, &into.out, &into.lse).ok());
  }
  CheckNear(into.out, whole.out);
  CheckNear(into.lse, whole.lse);
}

TEST_CASE("partials: a sink takes its weight once, after the last merge") {
  Rng rng(6);
  const Keys keys(rng, 9);
  for (const double sink : {-50.0, -1.0, 0.0, 4.0, 60.0}) {
    Answer answer = keys.Over(0, 4);
    const Answer rest = keys.Over(4, 9);
    REQUIRE(Merge(rest.out, rest.lse, &answer.out, &answer.lse).ok());
    const std::vector<float> sinks(kHeads, static_cast<float>(sink));
    REQUIRE(WithSinks(sinks, &answer.out, &answer.lse).ok());
    const Answer want = keys.Over(0, 9, sink);
    CheckNear(answer.out, want.out);
    CheckNear(answer.lse, want.lse);
  }
  // Heads apart; no sink leaves a head as it is; a row without keys has the sink's lse.
  Answer none = keys.Over(3, 3);
  REQUIRE(WithSinks({1.5f, -kInfinity, 2.0f}, &none.out, &none.lse).ok());
  CHECK(none.lse.f32()[0] == 1.5f);
  CHECK(none.lse.f32()[1] == -kInfinity);
  CHECK(none.lse.f32()[2] == 2.0f);
  CHECK(none.out.f32()[0] == 0);
}

TEST_CASE("partials: gates by element and by head") {
  Rng rng(7);
  const Keys keys(rng, 6);
  const Answer plain = keys.Over(0, 6);
  for (const int64_t dim : {kDim, int64_t{1}}) {
    Tensor gate(DType::kF32, kRows, kHeads, dim);
    for (int64_t i = 0; i < gate.view().size(); ++i) gate.f32()[i] = 20 * rng.Normal();
    Answer gated = keys.Over(0, 6);
    REQUIRE(Gate(gate, &gated.out).ok());
    for (int64_t i = 0; i < kRows * kHeads * kDim; ++i) {
      const double g = gate.f32()[dim == 1 ? i / kDim : i];
      CHECK(gated.out.f32()[i] == Approx(plain.out.f32()[i] / (1 + std::exp(-g))).margin(1e-12));
    }
  }
}

TEST_CASE("partials: parts that share no softmax add up by their weights") {
  Rng rng(9);
  const Keys keys(rng, 8);
  const Answer first = keys.Over(0, 8), second = keys.Over(2, 5);
  for (const int64_t rows : {kRows, int64_t{1}}) {
    for (const int64_t dim : {kDim, int64_t{1}}) {
      Tensor weight(DType::kF32, rows, kHeads, dim);
      for (int64_t i = 0; i < weight.view().size(); ++i) weight.f32()[i] = rng.Normal();
      const Tensor ones = [&] {
        Tensor all(DType::kF32, 1, kHeads, 1);
        std::fill_n(all.f32(), kHeads, 1.0f);
        return all;
      }();
      Tensor out(DType::kF32, kRows, kHeads, kDim);
      REQUIRE(Blend({first.out, second.out}, {weight, ones}, &out).ok());
      for (int64_t i = 0; i < kRows * kHeads * kDim; ++i) {
        const int64_t row = i / (kHeads * kDim), head = i / kDim % kHeads, c = i % kDim;
        const int64_t at = ((rows == 1 ? 0 : row) * kHeads + head) * dim + (dim == 1 ? 0 : c);
        const double want = double{weight.f32()[at]} * first.out.f32()[i] + second.out.f32()[i];
        CHECK(out.f32()[i] == Approx(want).margin(1e-6));
      }
    }
  }
}

TEST_CASE("partials: what does not fit is refused by its name, and nothing changes") {
  Rng rng(8);
  const Keys keys(rng, 6);
  Answer into = keys.Over(0, 3), part = keys.Over(3, 6);
  const auto refused = [](const absl::Status& status, absl::string_view field) {
    INFO(status.ToString());
    CHECK(absl::IsInvalidArgument(status));
    CHECK(absl::StartsWith(status.message(), field));
  };
  Tensor narrow(DType::kF32, kRows, kHeads, kDim - 1), half(DType::kBF16, kRows, kHeads, kDim);
  refused(Merge(narrow, part.lse, &into.out, &into.lse), "out: ");
  refused(Merge(half, part.lse, &into.out, &into.lse), "out: ");
  refused(Merge(part.out, part.out, &into.out, &into.lse), "lse: ");
  refused(Merge(part.out, part.lse, &half, &into.lse), "into_out: ");
  refused(Merge(part.out, part.lse, &into.out, &part.out), "into_lse: ");
  refused(WithSinks({1.0f}, &into.out, &into.lse), "number of sinks: 1");
  refused(WithSinks({1.0f, NAN, 0.0f}, &into.out, &into.lse), "sink of head 1: ");
  refused(WithSinks({1.0f, 0.0f, kInfinity}, &into.out, &into.lse), "sink of head 2: ");
  refused(WithSinks({}, &into.out, &into.lse), "number of sinks: 0");
  refused(Gate(narrow, &into.out), "gate: ");
  refused(Blend({}, {}, &into.out), "number of weights: 0");
  refused(Blend({part.out}, {}, &into.out), "number of weights: 0");
  refused(Blend({part.out, narrow}, {part.out, part.out}, &into.out), "parts[1]: ");
  refused(Blend({part.out}, {narrow}, &into.out), "weights[0]: ");
  // Memory that is not there, or whose rows lie on each other.
  TensorView nothing = part.out, crossed = part.out;
  nothing.data = nullptr;
  crossed.token_stride = -8;
  const auto why = [&](const TensorView& out) {
    return std::string(Merge(out, part.lse, &into.out, &into.lse).message());
  };
  CHECK(why(nothing) == "out: null; expected its values");
  CHECK(why(crossed) == "out.token_stride: -8; expected at least dim, 4");
  refused(Blend({part.out}, {nothing}, &into.out), "weights[0]: null");
  refused(Gate(nothing, &into.out), "gate: null");
  CheckNear(into.out, keys.Over(0, 3).out);
  // A row without an answer is none after the merge, whatever the other part saw.
  part.lse.f32()[4] = NAN;
  refused(Merge(part.out, part.lse, &into.out, &into.lse), "q row 1, head 1");
}

}  // namespace
}  // namespace annulus
