#include "base/log.h"

#include "tests/catch.h"

namespace annulus {
namespace {

TEST_CASE("A log line is logfmt, with values escaped and cut") {
  CHECK(LogLine("worker joined", {{"worker", 3}, {"name", "w3"}, {"s", 0.5}}) ==
        "event=\"worker joined\" worker=3 name=w3 s=0.5");
  CHECK(LogLine("x", {{"a", "two words\n\"q\""}, {"b", ""}}) ==
        "event=x a=\"two words\\n\\\"q\\\"\" b=\"\"");
  const std::string cut = LogLine("x", {{"a", std::string(10000, 'y')}});
  CHECK(cut.size() < 600);
  CHECK(cut.find("…\"") != std::string::npos);
}

TEST_CASE("Log levels have names") {
  CHECK(ParseLogLevel("warning").value() == LogLevel::kWarning);
  CHECK(ParseLogLevel("off").value() == LogLevel::kOff);
  CHECK(absl::IsInvalidArgument(ParseLogLevel("loud\n").status()));
}

}  // namespace
}  // namespace annulus
