// `annulus attend` and `explain` with queries anywhere over any range of the keys.
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "tests/catch.h"
#include "tests/cli/attend_files.h"

namespace annulus {
namespace {

using nlohmann::json;
using test::Outcome;
using test::RunHere;

TEST_CASE("attend: queries anywhere over any range of the keys give the definition's answer") {
  const Files files;
  struct Place {
    int64_t q_start;
    TokenRange keys;
  };
  for (const std::string pattern : {"causal", "s2(64,1,3)", "docs(130,200) & window(90,20)"}) {
    for (const Place place :
         {Place{0, {0, 330}}, {100, {70, 140}}, {300, {1, 2}}, {500, {64, 330}}}) {
      const int workers = place.q_start == 0 ? 1 : 3;
      CAPTURE(pattern, place.q_start, place.keys.begin, place.keys.end);
      const Outcome outcome =
          RunHere(files.Args({{"--workers", absl::StrCat(workers)},
                              {"--pattern", pattern},
                              {"--q-start", absl::StrCat(place.q_start)},
                              {"--keys", absl::StrCat(place.keys.begin, ":", place.keys.end)}}));
      INFO(outcome.err);
      REQUIRE(outcome.code == 0);
      const Expected expected =
          Attend(files.q, files.k, &files.v, kVDim, pattern, 0.25, place.q_start, place.keys);
      CHECK(Distance(test::ReadF32(files.folder / "out.npy", {kTokens, kHeads, kVDim}),
                     expected.out) < 1e-5);
      CHECK(Distance(test::ReadF32(files.folder / "lse.npy", {kTokens, kHeads}), expected.lse) <
            1e-5);
      const json report = json::parse(outcome.out);
      CHECK(report["visited_pairs"] == expected.visited_pairs);
      CHECK(report["bytes_moved"] == report["planned_bytes"]);
      CHECK(report["q_start"] == place.q_start);
      CHECK(report["keys"] == json::array({place.keys.begin, place.keys.end}));
      CHECK(report["kv_tokens"] == kKvTokens);
      const json explained =
          json::parse(RunHere({"explain",
                               "--tokens",
                               absl::StrCat(kKvTokens),
                               "--q-tokens",
                               absl::StrCat(kTokens),
                               "--heads",
                               "4",
                               "--kv-heads",
                               "2",
                               "--head-dim",
                               "16",
                               "--v-head-dim",
                               "24",
                               "--dtype",
                               "f32",
                               "--workers",
                               absl::StrCat(workers),
                               "--pattern",
                               pattern,
                               "--q-start",
                               absl::StrCat(place.q_start),
                               "--keys",
                               absl::StrCat(place.keys.begin, ":", place.keys.end),
                               "--json",
                               "--plan",
                               report["plan"].get<std::string>()})
                          .out);
      CHECK(explained["visited_pairs"] == expected.visited_pairs);
      CHECK(explained["bytes_total"] == report["planned_bytes"]);
    }
  }
}

}  // namespace
}  // namespace annulus
