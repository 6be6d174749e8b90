// Spans of a cluster's processes: one trace from the caller over the coordinator to the workers.
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "annulus/client.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/cli/program.h"
#include "tests/cli/question.h"
#include "tests/temp_folder.h"

namespace annulus {
namespace {

using nlohmann::json;
using test::Program;
using test::Question;

const std::string kTrace = "4bf92f3577b34da6a3ce929d0e0e4736";
const std::string kSpan = "00f067aa0ba902b7";

// The first spans of lines of this trace.
std::vector<json> SpansIn(const std::string& path) {
  std::vector<json> spans;
  std::istringstream lines(test::ReadBytes(path));
  for (std::string line; std::getline(lines, line);) {
    const json all = json::parse(line)["resourceSpans"][0]["scopeSpans"][0]["spans"];
    if (all[0]["traceId"] == kTrace) spans.push_back(all);
  }
  return spans;
}

TEST_CASE("a call's trace goes from its caller over the coordinator to the workers") {
  const test::TempFolder folder;
  const std::string of_coordinator = folder / "coordinator";
  const std::string of_worker = folder / "worker";
  Program coordinator({"coordinator", "--listen", "127.0.0.1:0", "--trace-out", of_coordinator,
                       "--log-level", "debug"});
  const std::string endpoint = coordinator.ReadLine().substr(6);
  Program worker({"worker", "--coordinator", endpoint, "--threads", "1", "--name", "first",
                  "--trace-out", of_worker});
  const auto client = Client::Connect({.endpoint = endpoint});
  REQUIRE(client.ok());
  Rng rng(5);
  const Question question(rng);
  const absl::StatusOr<ContextId> context = question.UploadWhenReady(**client);
  REQUIRE(context.ok());
  const CallOptions traced{.traceparent = absl::StrCat("00-", kTrace, "-", kSpan, "-01")};
  const absl::StatusOr<AttendResult> answer = (*client)->Attend(question.Ask(*context), traced);
  REQUIRE(answer.ok());
  CHECK(answer->trace.empty());  // it was not asked for

  REQUIRE(test::Within(absl::Seconds(10), [&] { return SpansIn(of_coordinator).size() == 1; }));
  const json call = SpansIn(of_coordinator)[0];
  CHECK(call[0]["name"] == "annulus.v1.Annulus/Attend");
  CHECK(call[0]["parentSpanId"] == kSpan);
  CHECK(call.size() > 1);  // planning, packing and the like
  CHECK(call[1]["parentSpanId"] == call[0]["spanId"]);
  const std::vector<json> works = SpansIn(of_worker);
  REQUIRE(works.size() == 1);
  CHECK(works[0][0]["name"] == "work");
  CHECK(works[0][0]["parentSpanId"] == call[0]["spanId"]);
  CHECK(works[0].size() > 1);
  CHECK(absl::StrContains(coordinator.err(), absl::StrCat("trace=", kTrace)));

  // One that its caller does not record is recorded nowhere.
  const CallOptions not_recorded{.traceparent = absl::StrCat("00-", kTrace, "-", kSpan, "-00")};
  REQUIRE((*client)->Attend(question.Ask(*context), not_recorded).ok());
  REQUIRE((*client)->Attend(question.Ask(*context), traced).ok());
  REQUIRE(test::Within(absl::Seconds(10), [&] { return SpansIn(of_coordinator).size() == 2; }));
  CHECK(SpansIn(of_worker).size() == 2);
  CHECK(test::IsRefusal(test::RunHere(
      {"coordinator", "--listen", "127.0.0.1:0", "--trace-out", folder / "no/such"})));
}

}  // namespace
}  // namespace annulus
