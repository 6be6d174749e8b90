#include "attention/reference/reference.h"

#include <cmath>
#include <limits>

#include "tests/attention/problem.h"
#include "tests/catch.h"

namespace annulus {
namespace {

// One KV head of dim 2: keys (0, 0), (1, 0), (0, 1), (2, 2); values (1, 0), (0, 1), (4, 4), (8, 0).
struct Handmade {
  Handmade() : k(DType::kF32, 4, 1, 2), v(DType::kF32, 4, 1, 2) {
    const float keys[] = {0, 0, 1, 0, 0, 1, 2, 2};
    const float values[] = {1, 0, 0, 1, 4, 4, 8, 0};
    std::copy_n(keys, 8, k.f32());
    std::copy_n(values, 8, v.f32());
    kv = KvTable::FromTensors(k, v);
  }

  ReferenceAnswer Row(const std::string& pattern, int64_t position, float scale) {
    const float q[] = {1, 2};
    return *ReferenceRow(reinterpret_cast<const std::byte*>(q), DType::kF32, kv, 4,
                         *Pattern::Parse(pattern, 1), 0, position, scale);
  }

  Tensor k;
  Tensor v;
  KvTable kv;
};

}  // namespace

TEST_CASE("the oracle computes what is worked out by hand") {
  Handmade hand;
  const ReferenceAnswer self = hand.Row("window(1)", 3, 0.5f);
  CHECK(self.out == std::vector<double>{8, 0});
  CHECK(self.lse == Approx(3.0));  // 0.5 · (1·2 + 2·2)

  const ReferenceAnswer two = hand.Row("causal", 1, 1.0f);  // scores 0 and 1
  const double e = std::exp(1.0);
  CHECK(two.out[0] == Approx(1 / (1 + e)));
  CHECK(two.out[1] == Approx(e / (1 + e)));
  CHECK(two.lse == Approx(std::log(1 + e)));

  const ReferenceAnswer even = hand.Row("full", 0, 0.0f);  // all scores 0: the mean
  CHECK(even.out[0] == Approx(13.0 / 4));
  CHECK(even.lse == Approx(std::log(4.0)));

  const ReferenceAnswer nothing = hand.Row("window(1) & sink(1)", 2, 1.0f);
  CHECK(nothing.out == std::vector<double>{0, 0});
  CHECK(nothing.lse == -std::numeric_limits<double>::infinity());
}

TEST_CASE("the oracle reads only the blocks it is given") {
  ProblemShape shape;
  shape.kv_tokens = 200;
  const Problem problem(shape, 3);
  const BlockSet second = BlockSet::Range(1, 1);
  const auto row = [&](const BlockSet* keys, const std::string& pattern) {
    return *ReferenceRow(problem.q().Row(199, 0), DType::kF32, problem.kv(), 200,
                         *Pattern::Parse(pattern, 2), 0, 199, problem.scale(), keys);
  };
  // Keys 64 to 127 are what the query at 199 sees through this window less that one.
  const ReferenceAnswer some = row(&second, "full");
  const ReferenceAnswer same = row(nullptr, "sink(128) & window(136)");
  CHECK(some.lse == same.lse);
  CHECK(some.out == same.out);
}

TEST_CASE("the oracle names a page that is not there") {
  ProblemShape shape;
  shape.kv_tokens = 200;
  Problem problem(shape, 3);
  problem.mutable_kv()->Set(0, 2, {});
  const absl::Status status = ReferenceRow(problem.q().Row(0, 0), DType::kF32, problem.kv(), 200,
                                           problem.pattern(), 0, 199, 1.0f)
                                  .status();
  CHECK(status.code() == absl::StatusCode::kInternal);
}

}  // namespace annulus
