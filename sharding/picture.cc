#include "sharding/picture.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "sharding/build.h"

namespace annulus {
namespace {

constexpr int64_t kCellsMax = 256;  // along each side of a block map
constexpr int64_t kSamplesMax = 4;  // query blocks looked at for one row of cells
constexpr int kPanelsMax = 4;
constexpr int kShades = 6;  // of a worker's colour
constexpr double kMargin = 28;
constexpr double kHeaderHeight = 92;
constexpr double kCaptionHeight = 22;
constexpr double kAxisHeight = 30;
constexpr double kLegendWidth = 276;
constexpr double kLegendRow = 21;

struct Colour {
  int red, green, blue;
};

// Ten well apart by hand; beyond that the ranks go round the hues, so that neighbours look alike.
Colour ColourOf(int rank, int world) {
  static constexpr Colour kTen[] = {{46, 110, 187}, {232, 126, 36}, {58, 160, 84},  {204, 61, 70},
                                    {130, 95, 185}, {35, 165, 178}, {222, 98, 166}, {140, 98, 70},
                                    {176, 170, 40}, {108, 118, 132}};
  if (world <= static_cast<int>(std::size(kTen))) return kTen[rank];
  const double hue = 330.0 * rank / world;
  const double value = rank % 2 == 0 ? 0.78 : 0.62, chroma = 0.75 * value;
  const auto channel = [&](double offset) {
    const double k = std::fmod(offset + hue / 60, 6);
    const double at = value - chroma * std::clamp(std::min(k, 4 - k), 0.0, 1.0);
    return static_cast<int>(std::lround(255 * at));
  };
  return {channel(5), channel(3), channel(1)};
}

// Shade 0 is the palest. Mixed with the paper instead of made transparent, for small files.
std::string Shade(Colour colour, int shade) {
  const double strength = 0.35 + 0.65 * shade / (kShades - 1);
  const auto mix = [strength](int channel) {
    return static_cast<int>(std::lround(255 + (channel - 255) * strength));
  };
  return absl::StrFormat("#%02x%02x%02x", mix(colour.red), mix(colour.green), mix(colour.blue));
}

std::string Escaped(absl::string_view text, size_t length_max) {
  std::string escaped;
  for (char c : text.substr(0, length_max)) {
    if (c == '&' || c == '<' || c == '>' || c == '"') {
      absl::StrAppend(&escaped, "&#", static_cast<int>(c), ";");
    } else {
      escaped += c >= ' ' && c <= '~' ? c : ' ';
    }
  }
  return text.size() > length_max ? escaped + " ..." : escaped;
}

// "1.5 G", in powers of 1024.
std::string Short(double value) {
  const char* const units[] = {"", " K", " M", " G", " T", " P"};
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(units)) {
    value /= 1024;
    ++unit;
  }
  return value < 100 ? absl::StrFormat("%.3g%s", value, units[unit])
                     : absl::StrFormat("%.0f%s", value, units[unit]);
}

// A block map in cells: who computes most of each, and how full it is.
class BlockMap {
 public:
  BlockMap(const Plan& plan, int kv_head)
      : plan_(plan), problem_(plan.problem()), kv_head_(kv_head) {
    const BlockRun queries = problem_.QueryBlocks().runs()[0];
    q_first_ = queries.first;
    q_blocks_ = queries.count;
    kv_blocks_ = BlocksOf(problem_.kv_tokens);
    rows_ = std::min(q_blocks_, kCellsMax);
    columns_ = std::min(kv_blocks_, kCellsMax);
    const int head = kv_head * problem_.group();
    for (const Round& round : plan.rounds()) {
      for (const Compute& compute : round.computes) {
        if (head >= compute.heads.first && head < compute.heads.end()) {
          computes_.push_back(&compute);
        }
      }
    }
  }

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }

  // One SVG path of rectangles for each colour and shade, in units of cells.
  std::string Paths() const {
    std::map<Cell, std::string> paths;
    // Runs of equal cells that the row above has too, and the row where each began.
    std::map<CellRun, int64_t> open;
    for (int64_t row = 0; row <= rows_; ++row) {
      std::map<CellRun, int64_t> here;
      for (const CellRun& run : row < rows_ ? Runs(Row(row)) : std::vector<CellRun>()) {
        const auto above = open.find(run);
        here.emplace(run, above == open.end() ? row : above->second);
      }
      for (const auto& [run, began] : open) {
        if (here.count(run) > 0) continue;
        const auto& [begin, end, cell] = run;
        absl::StrAppend(&paths[cell], "M", begin, " ", began, "h", end - begin, "v", row - began,
                        "h-", end - begin, "z");
      }
      open = std::move(here);
    }
    std::string svg;
    for (const auto& [cell, path] : paths) {
      const Colour colour = ColourOf(cell.first, plan_.world());
      absl::StrAppend(&svg, "<path fill=\"", Shade(colour, cell.second), "\" d=\"", path, "\"/>\n");
    }
    return svg;
  }

 private:
  using Cell = std::pair<int, int>;  // rank and shade; shade −1 where nothing is computed

  using CellRun = std::tuple<int64_t, int64_t, Cell>;  // columns [begin, end)

  static std::vector<CellRun> Runs(const std::vector<Cell>& cells) {
    std::vector<CellRun> runs;
    for (size_t begin = 0; begin < cells.size();) {
      size_t end = begin + 1;
      while (end < cells.size() && cells[end] == cells[begin]) ++end;
      if (cells[begin].second >= 0) runs.emplace_back(begin, end, cells[begin]);
      begin = end;
    }
    return runs;
  }

  int64_t CellBegin(int64_t column) const { return column * kv_blocks_ / columns_; }

  std::vector<Cell> Row(int64_t row) const {
    const int64_t begin = row * q_blocks_ / rows_, end = (row + 1) * q_blocks_ / rows_;
    const int64_t samples = std::min(end - begin, kSamplesMax);
    std::vector<std::map<int, int64_t>> blocks(static_cast<size_t>(columns_));  // by rank
    for (int64_t i = 0; i < samples; ++i) {
      AddQueryBlock(q_first_ + begin + i * (end - begin) / samples, &blocks);
    }
    std::vector<Cell> cells(blocks.size(), {0, -1});
    for (int64_t column = 0; column < columns_; ++column) {
      int64_t all = 0, most = 0;
      for (const auto& [rank, count] : blocks[column]) {
        all += count;
        if (count > most) cells[column].first = rank;
        most = std::max(most, count);
      }
      if (all == 0) continue;
      const double area =
          static_cast<double>(samples * (CellBegin(column + 1) - CellBegin(column)));
      // The root keeps sparse cells visible.
      cells[column].second =
          static_cast<int>(std::lround((kShades - 1) * std::sqrt(static_cast<double>(all) / area)));
    }
    return cells;
  }

  void AddQueryBlock(int64_t q_block, std::vector<std::map<int, int64_t>>* blocks) const {
    const TokenRange range = problem_.q_range();
    const TokenRange queries{std::max(range.begin, q_block * kBlockTokens),
                             std::min(range.end, (q_block + 1) * kBlockTokens)};
    std::vector<TileRun> tiles;
    problem_.pattern.Row(kv_head_, queries, problem_.keys().end, &tiles);
    for (const Compute* compute : computes_) {
      if (!compute->q_blocks.Contains(q_block)) continue;
      for (const TileRun& tile : tiles) {
        for (const BlockRun& kv : compute->kv_blocks.runs()) {
          AddRun(Intersect(tile.blocks, kv), compute->rank, blocks);
        }
      }
    }
  }

  void AddRun(BlockRun run, int rank, std::vector<std::map<int, int64_t>>* blocks) const {
    while (run.count > 0) {
      // The last column that begins at or before the run's first block.
      const int64_t at = ((run.first + 1) * columns_ + kv_blocks_ - 1) / kv_blocks_ - 1;
      const int64_t left = CellBegin(at + 1) - run.first;
      const int64_t here = std::min(run.count, (left + run.step - 1) / run.step);
      (*blocks)[at][rank] += here;
      run.first += here * run.step;
      run.count -= here;
    }
  }

  const Plan& plan_;
  const Problem& problem_;
  const int kv_head_;
  int64_t q_first_ = 0, q_blocks_ = 0, kv_blocks_ = 0;
  int64_t rows_ = 0, columns_ = 0;
  std::vector<const Compute*> computes_;  // those of the head
};

void Text(double x, double y, absl::string_view style, absl::string_view text, std::string* svg) {
  absl::StrAppendFormat(svg, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">%s</text>\n", x, y, style,
                        text);
}

// One KV head of up to kPanelsMax classes, spread over all of them.
std::vector<int> HeadsToShow(const Pattern& pattern) {
  std::vector<int> classes;
  for (int head = 0; head < pattern.kv_heads(); ++head) {
    if (pattern.HeadClass(head) == head) classes.push_back(head);
  }
  const size_t shown = std::min<size_t>(classes.size(), kPanelsMax);
  std::vector<int> heads;
  for (size_t i = 0; i < shown; ++i) heads.push_back(classes[i * classes.size() / shown]);
  return heads;
}

std::string HeadCaption(const Pattern& pattern, int kv_head) {
  int alike = 0;
  for (int head = 0; head < pattern.kv_heads(); ++head) {
    alike += pattern.HeadClass(head) == kv_head ? 1 : 0;
  }
  if (alike == pattern.kv_heads() && alike > 1) return "all KV heads";
  std::string caption = absl::StrCat("KV head ", kv_head);
  if (alike > 1) absl::StrAppend(&caption, " and ", alike - 1, " alike");
  return caption;
}

// Draws one panel with its top left corner at (x, y); `height` is of the map alone.
void DrawPanel(const Plan& plan, int kv_head, double x, double y, double width, double height,
               std::string* svg) {
  const BlockMap map(plan, kv_head);
  const TokenRange queries = plan.problem().q_range();
  Text(x, y + 14, "caption", HeadCaption(plan.problem().pattern, kv_head), svg);
  const double top = y + kCaptionHeight;
  absl::StrAppendFormat(svg,
                        "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
                        "fill=\"#f3f4f6\"/>\n"
                        "<g transform=\"translate(%.1f %.1f) scale(%.5f %.5f)\" "
                        "shape-rendering=\"crispEdges\">\n",
                        x, top, width, height, x, top, width / static_cast<double>(map.columns()),
                        height / static_cast<double>(map.rows()));
  absl::StrAppend(svg, map.Paths(), "</g>\n");
  absl::StrAppendFormat(svg,
                        "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"none\" "
                        "stroke=\"#c3c8d0\"/>\n",
                        x, top, width, height);
  Text(x, top + height + 14, "axis",
       absl::StrCat("keys 0 to ", Short(static_cast<double>(queries.end)), " across, queries ",
                    Short(static_cast<double>(queries.begin)), " to ",
                    Short(static_cast<double>(queries.end)), " down"),
       svg);
}

void DrawLegend(const PlanCost& cost, double x, double y, int rows, std::string* svg) {
  int64_t most = 1;
  double total = 0;
  for (const WorkerLoad& worker : cost.workers) {
    most = std::max(most, worker.work_pairs);
    total += static_cast<double>(worker.work_pairs);
  }
  const int world = static_cast<int>(cost.workers.size());
  for (int column = 0; column * rows < world; ++column) {
    const double left = x + column * kLegendWidth;
    Text(left, y + 14, "caption", "worker", svg);
    Text(left + 138, y + 14, "head", "work", svg);
    Text(left + 192, y + 14, "head", "sent", svg);
    Text(left + 256, y + 14, "head", "received", svg);
  }
  for (const WorkerLoad& worker : cost.workers) {
    const double left = x + worker.worker / rows * kLegendWidth;
    const double top = y + kCaptionHeight + worker.worker % rows * kLegendRow;
    const std::string colour = Shade(ColourOf(worker.worker, world), kShades - 1);
    const double pairs = static_cast<double>(worker.work_pairs);
    absl::StrAppendFormat(svg,
                          "<rect x=\"%.1f\" y=\"%.1f\" width=\"70\" height=\"13\" rx=\"2\" "
                          "fill=\"#eceef1\"/>\n"
                          "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.2f\" height=\"13\" rx=\"2\" "
                          "fill=\"%s\"/>\n",
                          left + 24, top, left + 24, top, 70 * pairs / static_cast<double>(most),
                          colour);
    Text(left + 18, top + 11, "number", absl::StrCat(worker.worker), svg);
    Text(left + 138, top + 11, "number",
         absl::StrFormat("%.1f%%", total > 0 ? 100 * pairs / total : 0), svg);
    Text(left + 192, top + 11, "number", Short(static_cast<double>(worker.bytes_sent)), svg);
    Text(left + 256, top + 11, "number", Short(static_cast<double>(worker.bytes_received)), svg);
  }
}

void DrawHeader(const Plan& plan, const PlanCost& cost, const ProblemSize& size, std::string* svg) {
  const Problem& problem = plan.problem();
  Text(kMargin, 36, "title", absl::StrCat(Name(plan.kind()), " over ", plan.world(), " workers"),
       svg);
  Text(kMargin, 58, "line", Escaped(problem.pattern.text(), 110), svg);
  Text(kMargin, 78, "line",
       absl::StrFormat("%s queries × %s keys, %d heads, %d KV heads · density %.3g%% · "
                       "imbalance %.3f · %sB moved",
                       Short(static_cast<double>(problem.q_tokens)),
                       Short(static_cast<double>(problem.kv_tokens)), problem.heads,
                       problem.kv_heads, 100 * size.density, cost.imbalance,
                       Short(static_cast<double>(cost.bytes_total))),
       svg);
}

constexpr char kStyle[] =
    "<style>text{font-family:Inter,Helvetica,Arial,sans-serif;fill:#2b3038}"
    ".title{font-size:21px;font-weight:600}.line{font-size:13px;fill:#525a66}"
    ".caption{font-size:12px;font-weight:600}.axis{font-size:11px;fill:#7a828e}"
    ".number{font-size:11px;text-anchor:end}.head{font-size:12px;font-weight:600;text-anchor:end}</"
    "style>\n";

}  // namespace

std::string BlockMapSvg(const Plan& plan, const PlanCost& cost, const ProblemSize& size) {
  const std::vector<int> heads = HeadsToShow(plan.problem().pattern);
  const int panels = static_cast<int>(heads.size());
  // Few queries make flat maps, one below the other, though never lines.
  const double share =
      static_cast<double>(plan.problem().q_tokens) / static_cast<double>(plan.problem().kv_tokens);
  const bool flat = share < 0.2;
  const int columns = flat ? 1 : std::min(panels, 2);
  const int rows = (panels + columns - 1) / columns;
  const double side = flat ? 640 : panels == 1 ? 560 : 330;
  const double map_height = side * (flat ? 0.15 : std::clamp(2 * share, 0.4, 1.0));
  const double panel_height = kCaptionHeight + map_height + kAxisHeight;
  const int legend_rows =
      std::clamp(static_cast<int>((rows * panel_height - kCaptionHeight) / kLegendRow), 16, 64);
  const int legend_columns = (plan.world() + legend_rows - 1) / legend_rows;
  const double legend_height = kCaptionHeight + std::min(plan.world(), legend_rows) * kLegendRow;
  const double legend_x = kMargin + columns * (side + kMargin);
  const double width = std::max(760.0, legend_x + legend_columns * kLegendWidth + kMargin);
  const double height = kHeaderHeight + std::max(rows * panel_height, legend_height) + 12;

  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
      "viewBox=\"0 0 %.0f %.0f\">\n%s<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
      width, height, width, height, kStyle);
  DrawHeader(plan, cost, size, &svg);
  for (int i = 0; i < panels; ++i) {
    DrawPanel(plan, heads[i], kMargin + i % columns * (side + kMargin),
              kHeaderHeight + i / columns * panel_height, side, map_height, &svg);
  }
  DrawLegend(cost, legend_x, kHeaderHeight, legend_rows, &svg);
  svg += "</svg>\n";
  return svg;
}

}  // namespace annulus
