#include "sharding/picture.h"

#include "tests/sharding/random_problem.h"

namespace annulus {
namespace {

std::string Draw(PlanKind kind, const Problem& problem) {
  const Plan plan = *BuildPlan(kind, problem);
  return BlockMapSvg(plan, Cost(plan, ClusterModel{}), SizeOf(problem));
}

size_t CountOf(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

// Cells covered by the paths of the first block map.
int64_t Area(const std::string& svg) {
  int64_t area = 0;
  const size_t end = svg.find("</g>");
  for (size_t at = svg.find('h', svg.find(" d=\"")); at < end; at = svg.find('h', at + 1)) {
    if (svg[at + 1] == '-' || svg[at + 1] < '0' || svg[at + 1] > '9') continue;
    const int64_t width = std::stoll(svg.substr(at + 1));
    const size_t down = svg.find('v', at);
    area += width * std::stoll(svg.substr(down + 1));
  }
  return area;
}

TEST_CASE("a block map has one cell for each visited block of a small problem") {
  const uint64_t seed = 99;
  CAPTURE(seed);
  Rng rng(seed);
  for (int round = 0; round < 40; ++round) {
    Problem problem = RandomProblem(rng);
    const AllowedBlocks allowed(problem);
    int64_t visited = 0;
    for (const int64_t q : problem.QueryBlocks().ToVector()) {
      for (int64_t k = 0; k < allowed.blocks(); ++k) visited += allowed.At(0, q, k) ? 1 : 0;
    }
    for (PlanKind kind : kPlanKinds) {
      INFO(Name(kind) << ", " << Describe(problem));
      const std::string svg = Draw(kind, problem);
      REQUIRE(svg.rfind("</svg>\n") == svg.size() - 7);
      REQUIRE(Area(svg) == visited);
    }
  }
}

TEST_CASE("a picture names what it shows, escapes it and stays small") {
  const Problem problem = MakeProblem(1 << 20, 1 << 20, 8, 8, 64, "(s2(64,16,16))  &\n causal");
  const std::string svg = Draw(PlanKind::kGroupCast, problem);
  CHECK(svg.find("group-cast over 64 workers") != std::string::npos);
  CHECK(svg.find("(s2(64,16,16))  &#38;  causal") != std::string::npos);
  CHECK(CountOf(svg, "<g transform") == 4);
  CHECK(svg.size() < 400000);
}

TEST_CASE("heads that see the same share a map") {
  CHECK(CountOf(Draw(PlanKind::kRing, MakeProblem(999, 999, 8, 4, 3, "causal")), "<g transform") ==
        1);
  CHECK(CountOf(Draw(PlanKind::kHeads,
                     MakeProblem(999, 999, 8, 4, 3, "heads(0-1: causal; 2-3: window(5))")),
                "<g transform") == 2);
}

}  // namespace
}  // namespace annulus
