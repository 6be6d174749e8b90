// Query heads by a table, and K heads that are not as many as V heads, on a service that has
// neither, against the definition in f64.
#include "annulus/head_table.h"

#include <cmath>
#include <numeric>
#include <vector>

#include "annulus/client.h"
#include "base/rng.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr int64_t kTokens = 300, kRows = 7, kDim = 16, kVDim = 8;

Tensor Random(Rng& rng, int64_t tokens, int64_t heads, int64_t dim) {
  Tensor tensor(DType::kF32, tokens, heads, dim);
  for (int64_t i = 0; i < tensor.view().size(); ++i) tensor.f32()[i] = rng.Normal();
  return tensor;
}

const float* RowOf(const Tensor& tensor, int64_t token, int64_t head) {
  return reinterpret_cast<const float*>(tensor.view().Row(token, head));
}

struct Case {
  std::vector<int> k_of_query;
  int k_heads;
  std::vector<int> v_of_query;
  int v_heads;
};

// Causal, of the last tokens; the largest difference of out or lse.
double WorstOf(const Case& given, const Tensor& q, const Tensor& k, const Tensor& v,
               const HeadTable::Answer& answer) {
  double worst = 0;
  for (int64_t row = 0; row < kRows; ++row) {
    const int64_t keys = kTokens - kRows + row + 1;
    for (size_t head = 0; head < given.k_of_query.size(); ++head) {
      double sum = 0;
      std::vector<double> out(kVDim);
      for (int64_t key = 0; key < keys; ++key) {
        const float* a = RowOf(q, row, static_cast<int64_t>(head));
        const float* b = RowOf(k, key, given.k_of_query[head]);
        const double weight = std::exp(std::inner_product(a, a + kDim, b, 0.0) / 4);  // √16
        sum += weight;
        for (int64_t c = 0; c < kVDim; ++c) {
          out[c] += weight * RowOf(v, key, given.v_of_query[head])[c];
        }
      }
      const auto at = static_cast<int64_t>(head);
      worst = std::max(worst, std::fabs(std::log(sum) - *RowOf(answer.lse, row, at)));
      for (int64_t c = 0; c < kVDim; ++c) {
        worst = std::max(worst, std::fabs(out[c] / sum - RowOf(answer.out, row, at)[c]));
      }
    }
  }
  return worst;
}

TEST_CASE("a context answers as the table says") {
  const Case cases[] = {
      {{0, 0, 0, 0, 1, 1, 1, 1}, 2, {0, 0, 1, 1, 2, 2, 3, 3}, 4},  // DiffQKV: more V heads
      {{0, 1, 2, 3, 3, 0}, 4, {0, 0, 1, 1, 1, 0}, 2},              // more K heads
      {{2, 0, 0, 0, 2, 0}, 4, {2, 0, 0, 0, 2, 0}, 4},              // KDGQA: some serve none
      {{0}, 1, {2}, 3},
  };
  const auto client = Client::InProcess({.workers = 3, .threads = 1}).value();
  Rng rng(31);
  for (const Case& given : cases) {
    CAPTURE(given.k_of_query, given.v_of_query);
    const auto heads = static_cast<int64_t>(given.k_of_query.size());
    const HeadTable table =
        HeadTable::Of(given.k_of_query, given.k_heads, given.v_of_query, given.v_heads).value();
    const Tensor q = Random(rng, kRows, heads, kDim);
    const Tensor k = Random(rng, kTokens, given.k_heads, kDim);
    const Tensor v = Random(rng, kTokens, given.v_heads, kVDim);
    const auto info =
        client->CreateContext({.heads = table.heads(),
                               .kv_heads = table.kv_heads(),
                               .head_dim = static_cast<int>(kDim) * table.k_parts(),
                               .v_head_dim = static_cast<int>(kVDim) * table.v_parts(),
                               .dtype = DType::kF32});
    REQUIRE(info.ok());
    REQUIRE(client
                ->Append(
                    {.context = info->id, .k = table.Keys(k).value(), .v = table.Values(v).value()})
                .ok());
    const Tensor spread = table.Queries(q).value();
    const auto result = client->Attend({.context = info->id,
                                        .q_start = kTokens - kRows,
                                        .kv_len = kTokens,
                                        .q = spread,
                                        .scale = 0.25f});
    REQUIRE(result.ok());
    const HeadTable::Answer answer = table.Answers(result->out, result->lse).value();
    CHECK(answer.out.heads() == heads);
    CHECK(answer.out.dim() == kVDim);
    CHECK(WorstOf(given, q, k, v, answer) < 1e-5);
    const int64_t floats = kTokens * (given.k_heads * kDim + given.v_heads * kVDim);
    const int64_t kv_bytes = client->Describe(info->id)->kv_bytes;
    CHECK(kv_bytes >= floats * 4);                            // the heads' own
    CHECK(kv_bytes < floats * 4 * (kTokens + 64) / kTokens);  // up to a whole block
  }
}

TEST_CASE("tables and tensors that are none are refused by name") {
  const auto why = [](std::vector<int> k, int k_heads, std::vector<int> v, int v_heads) {
    return std::string(HeadTable::Of(k, k_heads, v, v_heads).status().message());
  };
  CHECK(why({}, 1, {}, 1) == "query heads: 0; expected 1 to 4096");
  CHECK(why({0}, 0, {0}, 1) == "k_heads: 0; expected 1 to 1024");
  CHECK(why({0}, 1, {0}, 1025) == "v_heads: 1025; expected 1 to 1024");
  CHECK(why({0}, 2, {0, 1}, 2) == "number of v_of_query: 2; expected 1, one for each query head");
  CHECK(why({0}, 2, {0}, 3) ==
        "v_heads: 3; expected a multiple of k_heads 2, or one that divides it");
  CHECK(why({0, 2}, 2, {0, 1}, 2) == "k_of_query[1]: 2; expected 0 to 1");
  CHECK(why({0, 1}, 2, {0, -1}, 2) == "v_of_query[1]: -1; expected 0 to 1");
  CHECK(why({0, 1}, 2, {0, 1}, 4) == "v_of_query[1]: 1; expected 2 to 3, beside K head 1");
  CHECK(why(std::vector<int>(4096), 2, std::vector<int>(4096), 2) ==
        "heads of the context: 8192; expected 1 to 4096");

  const HeadTable table = HeadTable::Of({0, 0, 1}, 2, {0, 1, 2}, 4).value();
  CHECK(table.heads() == 4);
  CHECK(table.kv_heads() == 2);
  CHECK(table.k_parts() == 1);
  CHECK(table.v_parts() == 2);
  const Tensor two(DType::kF32, 1, 2, 8), four(DType::kF32, 1, 4, 8);
  CHECK(table.Queries(two).status().message() == "q: [1, 2, 8]; expected [1, 3, dim]");
  CHECK(table.Keys(four).status().message() == "k: [1, 4, 8]; expected [1, 2, dim]");
  TensorView apart = four;
  apart.dim = 4;  // of rows of 8
  CHECK(table.Values(apart).status().message() ==
        "stride of v's heads: 8; expected 4: heads side by side");
  TensorView nothing = two;
  nothing.data = nullptr;
  CHECK(table.Keys(nothing).status().message() == "k: null; expected its values");
  CHECK(table.Keys(two).ok());
  CHECK_FALSE(table.Answers(four, two).ok());
}

}  // namespace
}  // namespace annulus
