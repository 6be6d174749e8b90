#include "runtime/cli/report/pattern_picture.h"

#include <vector>

#include "absl/strings/str_cat.h"

namespace annulus {
namespace {

constexpr int kScale = 3;  // of a pair, in pixels
constexpr int kGap = 12;
constexpr int kMargin = 4;

// Each run of allowed keys is one rectangle of the path.
std::string Runs(const Pattern& pattern, int head, int tokens) {
  std::string path;
  for (int q = 0; q < tokens; ++q) {
    for (int k = 0; k < tokens; ++k) {
      if (!pattern.Allows(head, q, k)) continue;
      const int first = k;
      while (k < tokens && pattern.Allows(head, q, k)) ++k;
      absl::StrAppend(&path, "M", first, " ", q, "h", k - first, "v1h", first - k, "z");
    }
  }
  return path;
}

}  // namespace

std::string PatternPicture(const Pattern& pattern, int tokens) {
  std::vector<int> heads;
  for (int head = 0; head < pattern.kv_heads(); ++head) {
    if (pattern.HeadClass(head) == head) heads.push_back(head);
  }
  const int side = tokens * kScale;
  const int width = static_cast<int>(heads.size()) * (side + kGap) - kGap + 2 * kMargin;
  const int height = side + 2 * kMargin;
  std::string svg =
      absl::StrCat("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", width, " ", height,
                   "\" width=\"", width, "\" height=\"", height, "\" role=\"img\">\n");
  for (size_t i = 0; i < heads.size(); ++i) {
    const int x = kMargin + static_cast<int>(i) * (side + kGap);
    absl::StrAppend(&svg, "<g transform=\"translate(", x, ",", kMargin, ") scale(", kScale,
                    ")\"><rect width=\"", tokens, "\" height=\"", tokens,
                    "\" fill=\"#f4f1ea\" stroke=\"#9a948a\" stroke-width=\"0.3\"/><path d=\"",
                    Runs(pattern, heads[i], tokens), "\" fill=\"#1f6f8b\"/></g>\n");
  }
  return svg + "</svg>\n";
}

}  // namespace annulus
