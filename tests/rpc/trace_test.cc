#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "runtime/telemetry/trace.h"
#include "tests/catch.h"

namespace annulus {
namespace {

TEST_CASE("a trace is JSON with a row group per process and exact times") {
  const int64_t t0 = 1'790'000'000'123'456'789;
  const std::vector<TraceSpan> spans = {
      {"worker 1", "tile", t0 + 1'500, t0 + 4'000},
      {"coordinator", "attend \"x\"\n", t0, t0 + 10'001},
      {"worker 1", "overlaps", t0 + 3'000, t0 + 6'000},
      {"worker 1", "nested", t0 + 2'000, t0 + 3'000},
      {"worker 1", "backwards", t0 + 9'000, t0 + 8'000},
      {"odd \xff", "bytes \xc3", t0, t0 + 1},
  };
  const auto json = nlohmann::json::parse(TraceJson(spans));
  std::map<std::string, int> pids;
  std::map<std::string, nlohmann::json> by_name;
  for (const auto& event : json["traceEvents"]) {
    if (event["ph"] == "M" && event["name"] == "process_name") {
      pids[event["args"]["name"].get<std::string>()] = event["pid"];
    }
    if (event["ph"] == "X") by_name[event["name"].get<std::string>()] = event;
  }
  CHECK(pids.size() == 3);
  CHECK(by_name.size() == 6);
  CHECK(by_name["tile"]["pid"] == pids["worker 1"]);
  CHECK(by_name["tile"]["ts"] == 1.5);
  CHECK(by_name["tile"]["dur"] == 2.5);
  CHECK(by_name["attend \"x\"\n"]["pid"] == pids["coordinator"]);
  CHECK(by_name["attend \"x\"\n"]["dur"] == 10.001);
  CHECK(by_name["nested"]["tid"] == by_name["tile"]["tid"]);
  CHECK(by_name["overlaps"]["tid"] != by_name["tile"]["tid"]);
  CHECK(by_name["backwards"]["dur"] == 0);
  CHECK(nlohmann::json::parse(TraceJson({}))["traceEvents"].empty());
}

TEST_CASE("a trace file is written, or its path is named") {
  const std::string path = std::string(std::tmpnam(nullptr)) + ".json";
  REQUIRE(WriteTrace(path, {{"a", "b", 1, 2}}).ok());
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  CHECK(nlohmann::json::parse(text.str())["traceEvents"].size() == 3);
  std::remove(path.c_str());
  const absl::Status status = WriteTrace("/no/such/folder/t.json", {});
  CHECK(absl::IsUnavailable(status));
  CHECK(status.message().find("/no/such/folder/t.json") != absl::string_view::npos);
}

}  // namespace
}  // namespace annulus
