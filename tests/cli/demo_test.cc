// The demo's own parts, against the backends in this process: what it plants is found exactly where
// the pattern shows it, and its checks see wrong answers.
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "attention/backend.h"
#include "attention/kv_view.h"
#include "runtime/cli/demo/checks.h"
#include "runtime/cli/demo/data.h"
#include "runtime/cli/relative_difference.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr HeadRange kAllKvHeads{0, kDemoKvHeads};
constexpr int64_t kTokens = 8192;
constexpr float kScale = 0.125f;

Pattern ParsePattern(const char* text) {
  absl::StatusOr<Pattern> pattern = Pattern::Parse(text, kDemoKvHeads);
  REQUIRE(pattern.ok());
  return *pattern;
}

// Attention of `q` at the last positions of the context.
Partial Attend(const DemoData& data, const Tensor& q, const Pattern& pattern) {
  const Tensor k = data.Keys({0, data.tokens()}, kAllKvHeads);
  const Tensor v = data.Values({0, data.tokens()}, kAllKvHeads);
  const KvTable table = KvTable::FromTensors(k, v);
  const BlockSet keys = BlockSet::Range(0, BlocksOf(data.tokens()));
  Partial partial(q.tokens(), kDemoHeads, kDemoDim);
  AttendArgs args;
  args.q = q;
  args.q_ranges = {{data.tokens() - q.tokens(), data.tokens()}};
  args.heads = {0, kDemoHeads};
  args.kv_tokens = data.tokens();
  args.group = kDemoGroup;
  args.kv = &table;
  args.pattern = &pattern;
  args.keys = &keys;
  args.scale = kScale;
  args.into = partial.view();
  absl::StatusOr<std::unique_ptr<Backend>> backend = MakeBackend("cpu", 2);
  REQUIRE(backend.ok());
  REQUIRE((*backend)->Attend(args).ok());
  REQUIRE(Finalise(partial.view()).ok());
  return partial;
}

std::vector<uint16_t> Bits(const TensorView& row, int head) {
  const auto* bits = reinterpret_cast<const uint16_t*>(row.Row(0, head));
  return {bits, bits + kDemoDim};
}

}  // namespace

TEST_CASE("demo: a row is the same in whatever piece it is made") {
  const DemoData data(7, 4096);
  const Tensor whole = data.Keys({0, 4096}, kAllKvHeads);
  const Tensor piece = data.Keys({1000, 3000}, {2, 2});
  for (int64_t t : {1000, 1001, 2047, 2999}) {
    for (int head : {2, 3}) {
      CHECK(Bits(whole.view().Tokens(t, 1), head) ==
            Bits(piece.view().Tokens(t - 1000, 1), head - 2));
    }
  }
  const Tensor other = DemoData(8, 4096).Keys({0, 1}, {0, 1});
  CHECK(Bits(whole, 0) != Bits(other, 0));
  CHECK(Bits(whole, 0) != Bits(whole, 1));
  CHECK(Bits(whole, 0) != Bits(data.Values({0, 1}, {0, 1}), 0));
}

TEST_CASE("demo: noise has mean 0 and the spread of a uniform of ±2") {
  const DemoData data(3, 4096);
  const Tensor v = data.Values({0, 4096}, kAllKvHeads);
  const auto* bits = reinterpret_cast<const uint16_t*>(v.data());
  double sum = 0;
  double squares = 0;
  const int64_t count = v.view().size();
  for (int64_t i = 0; i < count; ++i) {
    const double x = BF16ToF32(bits[i]);
    sum += x;
    squares += x * x;
  }
  CHECK(std::abs(sum / static_cast<double>(count)) < 0.02);
  CHECK(squares / static_cast<double>(count) == Approx(4.0 / 3).epsilon(0.02));
}

TEST_CASE("demo: associations lie at spread depths") {
  for (int64_t tokens : {64, 4096, 1 << 20}) {
    const DemoData data(1, tokens);
    for (int i = 0; i < kDemoAssociations; ++i) {
      CAPTURE(tokens, i);
      CHECK(data.Position(i) * kDemoAssociations / tokens == i);
    }
  }
}

TEST_CASE("demo: a planted value comes back exactly where the pattern shows its key") {
  const DemoData data(5, kTokens);
  for (const char* text : {"causal", "s2(64,16,4)", "window(1000)", "s2(64,1,16)"}) {
    CAPTURE(text);
    const Pattern pattern = ParsePattern(text);
    Recall recall;
    for (int i = 0; i < kDemoAssociations; ++i) {
      const Partial answer = Attend(data, data.Query(i), pattern);
      AddToRecall(data, pattern, i, kTokens - 1, answer.out().f32(), &recall);
    }
    CHECK(recall.asked == kDemoAssociations * kDemoHeads);
    CHECK(recall.found == recall.visible);
    CHECK(recall.stray == 0);
    CHECK(recall.complete());
    const bool causal = pattern.text() == "causal";
    CHECK((recall.visible == recall.asked) == causal);
    // Four heads cover a stride of 4, not one of 16.
    CHECK((recall.keys_seen == kDemoAssociations) == (causal || pattern.text() == "s2(64,16,4)"));
  }
}

TEST_CASE("demo: recall sees a value that is missing and one that should not be there") {
  const DemoData data(5, kTokens);
  const Pattern shows = ParsePattern("causal");
  const Pattern hides = ParsePattern("window(1)");
  const Partial answer = Attend(data, data.Query(0), shows);
  Recall stray;
  AddToRecall(data, hides, 0, kTokens - 1, answer.out().f32(), &stray);
  CHECK(stray.stray == kDemoHeads);
  CHECK_FALSE(stray.complete());
  Recall missing;
  AddToRecall(data, shows, 1, kTokens - 1, answer.out().f32(), &missing);
  CHECK(missing.found == 0);
  CHECK_FALSE(missing.complete());
}

TEST_CASE("demo: the chunk agrees with the oracle, and the oracle sees a wrong row") {
  const DemoData data(6, kTokens);
  const Pattern pattern = ParsePattern("s2(64,16,4)");
  constexpr int64_t kRows = 256;
  const TokenRange positions{kTokens - kRows, kTokens};
  const Tensor chunk = data.Chunk(positions);
  CHECK(Bits(chunk.view().Tokens(DemoData::ChunkRow(9, kRows), 1), 5) == Bits(data.Query(9), 5));
  const Partial answer = Attend(data, chunk, pattern);

  std::vector<SampledRow> rows;
  for (int64_t row : {0, 1, 100, 255, 254}) {
    // The last is not where its answer was made.
    const int64_t position = positions.begin + (rows.size() == 4 ? 0 : row);
    rows.push_back({0, &pattern, position, kTokens, CopyToken(chunk, row),
                    CopyToken(answer.out(), row), CopyToken(answer.lse(), row)});
  }
  REQUIRE(CompareWithOracle(data, kScale, absl::MakeSpan(rows)).ok());
  for (size_t i = 0; i + 1 < rows.size(); ++i) {
    CAPTURE(i);
    CHECK(rows[i].out_error < 4e-3);  // weights may be rounded to bf16
    CHECK(rows[i].lse_error < 1e-5);
  }
  CHECK(rows.back().out_error > 1e-2);
  CHECK(rows.back().lse_error > 1e-5);

  // An answer where none is seen, and one that is no number, are as wrong as can be.
  const Pattern nothing = ParsePattern("sink(1) & docs(1,8191)");
  rows.resize(2);
  rows[0].pattern = &nothing;
  rows[1].out.f32()[3] = std::numeric_limits<float>::quiet_NaN();
  rows[1].lse.f32()[0] = std::numeric_limits<float>::quiet_NaN();
  REQUIRE(CompareWithOracle(data, kScale, absl::MakeSpan(rows)).ok());
  for (const SampledRow& row : rows) {
    CHECK(std::isinf(row.out_error));
    CHECK(std::isinf(row.lse_error));
  }
  CHECK(RelativeDifference(answer.out(), answer.out()) == 0);
}

}  // namespace annulus
