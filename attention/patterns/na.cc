// na: neighbourhood attention over one to three axes (arXiv 2403.04690) and its generalisation by
// strides (2504.16922 §3), by NATTEN's rules: windows at a border are shifted, never cut.
#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/patterns/grid.h"
#include "attention/patterns/nodes.h"
#include "attention/patterns/word.h"
#include "base/status.h"

namespace annulus {
namespace {

struct Axis {
  int64_t tokens = 1;
  int64_t window = 1;
  int64_t stride = 1;    // ≤ window: so many neighbours share the window of one of them
  int64_t dilation = 1;  // window·dilation ≤ tokens
  bool causal = false;
};
using Axes = std::array<Axis, Grid::kAxes>;

// The keys of an axis that a query there sees: count of them, dilation apart.
struct Span {
  int64_t first = 0;
  int64_t count = 0;
};

// Tokens a dilation apart are an axis of their own, and `at` has a place on it.
Span SpanOf(const Axis& axis, int64_t at) {
  const int64_t rest = at % axis.dilation, i = at / axis.dilation;
  const int64_t tokens = CeilDiv(axis.tokens - rest, axis.dilation);
  const int64_t group = i / axis.stride * axis.stride;
  int64_t start, end;
  if (axis.causal) {
    const int64_t leader = std::min(group + axis.stride - 1, tokens - 1);
    start = std::max<int64_t>(leader - axis.window + 1, 0);
    end = i + 1;
  } else {
    const int64_t leader = std::min(group + axis.stride / 2, tokens - 1);
    start = std::clamp<int64_t>(leader - axis.window / 2, 0, tokens - axis.window);
    end = start + axis.window;
  }
  return {start * axis.dilation + rest, end - start};
}

bool Sees(const Axis& axis, int64_t q, int64_t k) {
  const Span span = SpanOf(axis, q);
  const int64_t past = k - span.first;
  return past >= 0 && past % axis.dilation == 0 && past / axis.dilation < span.count;
}

// Queries [at, end) of the last axis whose keys are one range, or one that moves along with them.
struct Run {
  int64_t end = 0;
  TokenRange keys;
  int64_t back = kFar;   // at most so many keys before the query
  int64_t ahead = kFar;  // and after it
};

// Of an axis that is not dilated.
Run RunFrom(const Axis& axis, int64_t at) {
  const int64_t before = axis.window / 2, after = axis.window - 1 - before;
  if (axis.stride == 1 && axis.causal) {
    return {axis.tokens, {0, axis.tokens}, axis.window - 1, 0};
  }
  if (axis.stride == 1 && before <= at && at < axis.tokens - after) {
    return {axis.tokens - after, {0, axis.tokens}, before, after};
  }
  const Span span = SpanOf(axis, at);
  Run run;
  run.end = std::min((at / axis.stride + 1) * axis.stride, axis.tokens);
  if (axis.stride == 1) run.end = at < before ? before : axis.tokens;
  run.keys = {span.first, axis.causal ? axis.tokens : span.first + span.count};
  if (axis.causal) run.ahead = 0;
  return run;
}

class Neighbourhood final : public PatternNode {
 public:
  Neighbourhood(const Grid& grid, const Axes& axes, int64_t extra)
      : PatternNode(SizeOf(axes, extra), HashNumbers('n', KeyOf(axes, extra))),
        grid_(grid),
        axes_(axes),
        extra_(extra) {}

  bool Allows(int64_t q, int64_t k) const override {
    const int64_t tokens = grid_.tokens();
    if (k >= tokens) return k < tokens + extra_;
    if (q >= tokens) return false;
    const Grid::Place a = grid_.PlaceOf(q), b = grid_.PlaceOf(k);
    return Sees(axes_[0], a[0], b[0]) && Sees(axes_[1], a[1], b[1]) && Sees(axes_[2], a[2], b[2]);
  }

  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    const int64_t tokens = grid_.tokens();
    AppendShape({0, kFar, tokens, tokens + extra_, -kFar, kFar, {}}, window, out);
    const int64_t end = std::min(window.q_end, tokens);
    for (int64_t q = window.q_begin; q < end;) q = AppendRun(q, window, out);
  }

  absl::optional<int64_t> CountPairs(const ShapeWindow& window) const override {
    const int64_t rows = (window.q_end - window.q_begin) / grid_.row_tokens() + 2;
    if (rows > kCountedRunsMax / size().shapes()) return absl::nullopt;
    return PairsOfDisjoint(*this, window);
  }

  // Along the slowest axis windows of one residue only move on.
  BlockSet Unneeded(int64_t next_q, int64_t blocks) const override {
    const int64_t tokens = grid_.tokens();
    const size_t slowest = Grid::kAxes - grid_.axes;
    const Axis& axis = axes_[slowest];
    const int64_t per_place = tokens / axis.tokens;
    int64_t first = next_q < tokens ? axis.tokens : 0;
    const int64_t at = next_q / per_place;
    for (int64_t i = at; i < std::min(at + axis.dilation, axis.tokens); ++i) {
      first = std::min(first, SpanOf(axis, i).first);
    }
    const int64_t before = next_q < tokens ? first * per_place : tokens;
    const int64_t begin = std::min(before / kBlockTokens, blocks);
    const int64_t after = std::clamp(BlocksOf(tokens + extra_), begin, blocks);
    return BlockSet::Range(0, begin).Union(BlockSet::Range(after, blocks - after));
  }
  bool Equals(const PatternNode& other) const override { return SameAs(*this, other); }
  std::vector<int64_t> Key() const { return KeyOf(axes_, extra_); }

 private:
  static std::vector<int64_t> KeyOf(const Axes& axes, int64_t extra) {
    std::vector<int64_t> key = {extra};
    for (const Axis& axis : axes) {
      for (const int64_t number :
           {axis.tokens, axis.window, axis.stride, axis.dilation, int64_t{axis.causal}}) {
        key.push_back(number);
      }
    }
    return key;
  }

  static Size SizeOf(const Axes& axes, int64_t extra) {
    const Axis& last = axes.back();
    const int64_t runs = last.dilation > 1                 ? last.tokens
                         : last.stride > 1 || !last.causal ? CeilDiv(last.tokens, last.stride)
                                                           : 1;
    const int64_t lines = axes[0].window * axes[1].window;
    Size size{
        .groups = std::min(GroupsMax(last.tokens) * std::min(runs, kBlockTokens), kBlockTokens),
        .ranges = extra > 0 ? 1 : 0,
        .keys = lines * last.window + extra};
    if (last.dilation == 1) {
      size.ranges += lines;
    } else {
      size.comb_lists = 1;
      size.combs = lines;
      size.tooth = 1;
      size.period = last.dilation;
    }
    return size;
  }

  // The queries from `q` on that are one run of the last axis; returns the first after them.
  int64_t AppendRun(int64_t q, const ShapeWindow& window, ShapeList* out) const {
    const Grid::Place place = grid_.PlaceOf(q);
    const Axis& last = axes_[2];
    const int64_t line = q - place[2];
    Run run;
    Comb comb;  // of the line that begins at 0
    if (last.dilation == 1) {
      run = RunFrom(last, place[2]);
    } else {
      const Span span = SpanOf(last, place[2]);
      run.end = place[2] + 1;
      run.keys = {span.first, span.first + (span.count - 1) * last.dilation + 1};
      comb = {span.first, 1, last.dilation};
    }
    const Span planes = SpanOf(axes_[0], place[0]), lines = SpanOf(axes_[1], place[1]);
    for (int64_t i = 0; i < planes.count; ++i) {
      for (int64_t j = 0; j < lines.count; ++j) {
        const int64_t begin = grid_.TokenAt(
            {planes.first + i * axes_[0].dilation, lines.first + j * axes_[1].dilation, 0});
        Shape shape{q, line + run.end, begin + run.keys.begin, begin + run.keys.end, -kFar, kFar,
                    {}};
        if (run.ahead < kFar) shape.d_min = line - begin - run.ahead;
        if (run.back < kFar) shape.d_max = line - begin + run.back;
        if (!comb.all()) shape.comb = {begin + comb.first, comb.length, comb.period};
        AppendShape(shape, window, out);
      }
    }
    return line + run.end;
  }

  const Grid grid_;
  const Axes axes_;
  const int64_t extra_;
};

// One number for each axis, or one for all.
absl::Status ReadEach(const PatternReader& reader, const PatternReader::Value& value,
                      const Grid& grid, absl::string_view name,
                      absl::InlinedVector<int64_t, Grid::kAxes>* each) {
  *each = value.numbers;
  if (each->size() == 1) each->resize(grid.axes, each->front());
  if (each->size() == grid.axes) return absl::OkStatus();
  return reader.Refuse(value.at, absl::StrCat("one ", name, " or ", grid.axes, " joined by x"),
                       absl::StrCat(each->size()));
}

absl::Status CheckAxis(const PatternReader& reader, size_t at, const Axis& axis) {
  if (axis.window > axis.tokens / axis.dilation) {
    return reader.Refuse(at, absl::StrCat("window·dilation of at most ", axis.tokens),
                         absl::StrCat(axis.window, "·", axis.dilation));
  }
  if (axis.stride > axis.window) {
    return reader.Refuse(at, absl::StrCat("a stride of at most the window's ", axis.window),
                         absl::StrCat(axis.stride));
  }
  return absl::OkStatus();
}

absl::StatusOr<Rules> ReadNeighbourhood(PatternReader& reader) {
  constexpr size_t kAxes = Grid::kAxes;
  ANNULUS_ASSIGN_OR_RETURN(auto values, reader.ReadArguments({{"extents", 1, true, kAxes},
                                                              {"window", 1, true, kAxes},
                                                              {"stride", 1, false, kAxes},
                                                              {"dilation", 1, false, kAxes},
                                                              {"causal", 0, false, kAxes},
                                                              {"extra", 0, false}}));
  ANNULUS_ASSIGN_OR_RETURN(const Grid grid, ReadGrid(reader, values[0], 1));
  for (const size_t i : {2, 3, 4}) {
    if (!values[i].given) values[i].numbers = {i < 4 ? 1 : 0};
  }
  absl::InlinedVector<int64_t, kAxes> windows, strides, dilations, causal;
  ANNULUS_RETURN_IF_ERROR(ReadEach(reader, values[1], grid, "window", &windows));
  ANNULUS_RETURN_IF_ERROR(ReadEach(reader, values[2], grid, "stride", &strides));
  ANNULUS_RETURN_IF_ERROR(ReadEach(reader, values[3], grid, "dilation", &dilations));
  ANNULUS_RETURN_IF_ERROR(ReadEach(reader, values[4], grid, "causal", &causal));
  Axes axes;
  for (size_t i = 0; i < grid.axes; ++i) {
    const size_t at = kAxes - grid.axes + i;
    if (causal[i] > 1) return reader.Refuse(values[4].at, "0 or 1", absl::StrCat(causal[i]));
    axes[at] = {grid.extents[at], windows[i], strides[i], dilations[i], causal[i] == 1};
    ANNULUS_RETURN_IF_ERROR(CheckAxis(reader, values[1].at, axes[at]));
  }
  const int64_t extra = std::min(values[5].number(), kFar / 2);
  return reader.SameForAll(std::make_shared<Neighbourhood>(grid, axes, extra));
}

}  // namespace

absl::Span<const PatternWord> NeighbourhoodWords() {
  static constexpr PatternWord kWords[] = {
      {"na", "na(TxHxW,window=AxBxC[,stride=1][,dilation=1][,causal=0][,extra=0])",
       "a window along each of one to three axes, moved to stay inside; all see `extra` keys after "
       "the grid",
       "2403.04690, 2504.16922", "na(8x8,window=3x5)", ReadNeighbourhood},
  };
  return kWords;
}

}  // namespace annulus
