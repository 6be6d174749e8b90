// `annulus attend` on inputs whose answers once were silently wrong: right, or refused in one line.
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/catch.h"
#include "tests/cli/program.h"
#include "tests/extremes.h"

namespace annulus {
namespace {

using test::IsRefusal;
using test::Outcome;
using test::RowTruth;
using test::RunHere;
using test::TestTensor;

// q, k and v in files, causal, with the default scale.
struct Files {
  Files(TestTensor q_in, TestTensor k_in, TestTensor v_in)
      : q(std::move(q_in)), k(std::move(k_in)), v(std::move(v_in)) {
    test::WriteBytes(folder / "q.npy", q.Npy());
    test::WriteBytes(folder / "k.npy", k.Npy());
    test::WriteBytes(folder / "v.npy", v.Npy());
  }

  Outcome Attend(const Arguments& more) const {
    Arguments args = {
        "attend",    "--json",         "--q",   folder / "q.npy",   "--k",   folder / "k.npy",
        "--v",       folder / "v.npy", "--out", folder / "out.npy", "--lse", folder / "lse.npy",
        "--pattern", "causal"};
    args.insert(args.end(), more.begin(), more.end());
    return RunHere(args);
  }

  // Whether what was written is right for inputs rounded to `dtype`.
  void CheckWritten(DType dtype, double rounding) const {
    const Tensor q_in = Rounded(q, dtype);
    const Tensor k_in = Rounded(k, dtype);
    const Tensor v_in = Rounded(v, dtype);
    const int64_t rows = q_in.tokens();
    const int64_t heads = q_in.heads();
    const auto out = test::ReadF32(folder / "out.npy", {rows, heads, v_in.dim()});
    const auto lse = test::ReadF32(folder / "lse.npy", {rows, heads});
    const Pattern causal = *Pattern::Parse("causal", static_cast<int>(k_in.heads()));
    for (int64_t i = 0; i < rows * heads; ++i) {
      INFO("row " << i / heads << ", head " << i % heads);
      const RowTruth truth = test::TruthOf(
          test::RowOf(q_in, i / heads, i % heads, q_in.dim()), k_in, v_in, v_in.dim(),
          static_cast<int>(i % heads * k_in.heads() / heads), k_in.tokens() - rows + i / heads,
          causal, 1 / std::sqrt(static_cast<double>(q_in.dim())));
      CHECK(test::WrongWith(truth, out.data() + i * v_in.dim(), lse[static_cast<size_t>(i)],
                            rounding) == "");
    }
  }

  static Tensor Rounded(const TestTensor& from, DType dtype) {
    Tensor tensor(dtype, from.shape[0], from.shape[1], from.shape[2]);
    Convert(from.values.data(), DType::kF32, tensor.data(), dtype,
            static_cast<int64_t>(from.values.size()));
    return tensor;
  }

  test::TempFolder folder;
  TestTensor q, k, v;
};

TestTensor Signs(Rng& rng, std::vector<int64_t> shape, float size) {
  TestTensor tensor = TestTensor::Random(rng, DType::kF32, std::move(shape));
  for (float& value : tensor.values) value = std::copysign(size, value);
  return tensor;
}

}  // namespace

TEST_CASE("attend: bf16 with 8 dims of V and any number of rows to a KV head is right") {
  Rng rng(1);
  for (int64_t rows = 7; rows <= 14; ++rows) {
    CAPTURE(rows);
    const Files heads(TestTensor::Random(rng, DType::kF32, {1, rows, 64}),
                      TestTensor::Random(rng, DType::kF32, {64, 1, 64}),
                      TestTensor::Random(rng, DType::kF32, {64, 1, 8}));
    REQUIRE(heads.Attend({"--dtype", "bf16"}).code == 0);
    heads.CheckWritten(DType::kBF16, 1e-2);
    const Files tokens(TestTensor::Random(rng, DType::kF32, {rows, 1, 64}),
                       TestTensor::Random(rng, DType::kF32, {64, 1, 64}),
                       TestTensor::Random(rng, DType::kF32, {64, 1, 8}));
    REQUIRE(tokens.Attend({"--dtype", "bf16"}).code == 0);
    tokens.CheckWritten(DType::kBF16, 1e-2);
  }
}

TEST_CASE("attend: a score that passes f32's range is refused by row and head, on any workers") {
  Rng rng(4);
  TestTensor q = TestTensor::Random(rng, DType::kF32, {1, 2, 64});
  for (float& value : q.values) value = std::fabs(value) * 1e15f;
  TestTensor k = TestTensor::Random(rng, DType::kF32, {150, 1, 64});
  std::fill_n(k.values.begin() + 10 * 64, 64, 1e30f);
  const Files files(q, k, TestTensor::Random(rng, DType::kF32, {150, 1, 64}));
  for (const std::string workers : {"1", "2", "3", "7"}) {
    for (const std::string plan : {"ring", "heads", "mesh", "group-cast", "pass-q", "auto"}) {
      for (const std::string dtype : {"f32", "bf16"}) {
        CAPTURE(workers, plan, dtype);
        const Outcome outcome =
            files.Attend({"--workers", workers, "--plan", plan, "--dtype", dtype});
        CHECK(IsRefusal(outcome));
        CHECK(outcome.err ==
              "annulus: q row 0, head 0: a score passes f32's range; expected |scale·q·k|, and "
              "each sum on the way to it, below 2.3e38, and below 4096 where scores of several "
              "parts of the keys tie\n");
      }
    }
  }
}

TEST_CASE("attend: subnormals count in every dtype") {
  Rng rng(11);
  const Files files(Signs(rng, {1, 2, 16}, 1e38f), Signs(rng, {50, 1, 16}, 1.1e-38f),
                    TestTensor::Random(rng, DType::kF32, {50, 1, 16}));
  const Files values(TestTensor::Random(rng, DType::kF32, {1, 2, 16}),
                     TestTensor::Random(rng, DType::kF32, {50, 1, 16}),
                     Signs(rng, {50, 1, 16}, 1e-39f));
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    CAPTURE(Name(dtype));
    for (const Files* some : {&files, &values}) {
      REQUIRE(some->Attend({"--dtype", std::string(Name(dtype))}).code == 0);
      some->CheckWritten(dtype, dtype == DType::kBF16 ? 1e-2 : 1e-5);
    }
  }
}

TEST_CASE("attend: values whose sum passes f32's range are refused by row and head") {
  Rng rng(12);
  const Files files(TestTensor::Random(rng, DType::kF32, {1, 2, 16}), Signs(rng, {50, 1, 16}, 0),
                    TestTensor{{50, 1, 16}, DType::kF32, std::vector<float>(50 * 16, 3e38f)});
  const Outcome outcome = files.Attend({});
  CHECK(IsRefusal(outcome));
  CHECK(outcome.err ==
        "annulus: v, as q row 0, head 0 sees it: a sum of values passes f32's range; expected sums "
        "below 3.4e38\n");
}

}  // namespace annulus
