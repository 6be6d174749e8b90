#include "base/trace_context.h"

#include "base/rng.h"
#include "tests/catch.h"

namespace annulus {
namespace {

const std::string kGood = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

TEST_CASE("a traceparent is read and written as W3C Trace Context says") {
  const auto trace = ParseTraceparent(kGood);
  REQUIRE(trace.has_value());
  CHECK(trace->trace_id == "4bf92f3577b34da6a3ce929d0e0e4736");
  CHECK(trace->span_id == "00f067aa0ba902b7");
  CHECK(trace->recorded());
  CHECK(ToTraceparent(*trace) == kGood);
  std::string other = kGood;
  other.replace(53, 2, "fe");  // flags that are not known, without the one that is
  REQUIRE(ParseTraceparent(other).has_value());
  CHECK(!ParseTraceparent(other)->recorded());
  // Of a later version what is known is read.
  CHECK(ParseTraceparent("cc" + kGood.substr(2)).has_value());
  CHECK(ParseTraceparent("cc" + kGood.substr(2) + "-what").has_value());
  CHECK(ToTraceparent({}).empty());
  CHECK(ToTraceparent(NewTrace()).empty());  // no span has begun
}

TEST_CASE("what is no traceparent is none") {
  const auto with = [](size_t at, const std::string& text) {
    return std::string(kGood).replace(at, text.size(), text);
  };
  for (const std::string& bad :
       {std::string(), kGood.substr(1), kGood + "0", kGood + "-x", "ff" + kGood.substr(2),
        "cc" + kGood.substr(2) + "x", with(3, "4B"), with(3, std::string(32, '0')),
        with(36, std::string(16, '0')), with(2, "_"), with(35, "_"), with(52, "_"), with(53, "0g"),
        with(40, std::string(1, '\0'))}) {
    CAPTURE(bad);
    CHECK(!ParseTraceparent(bad).has_value());
  }
  const uint64_t seed = 3;
  CAPTURE(seed);
  Rng rng(seed);
  for (int i = 0; i < 10'000; ++i) {
    std::string text = kGood;
    text[rng.Below(text.size())] = static_cast<char>(rng.Next());
    const auto trace = ParseTraceparent(text);
    if (trace.has_value()) CHECK(ParseTraceparent(ToTraceparent(*trace)).has_value());
  }
}

TEST_CASE("names of spans and traces are fresh and well formed") {
  TraceContext trace = NewTrace();
  trace.span_id = NewSpanId();
  CHECK(ParseTraceparent(ToTraceparent(trace)).has_value());
  CHECK(NewTrace().trace_id != trace.trace_id);
  CHECK(NewSpanId() != trace.span_id);
}

}  // namespace
}  // namespace annulus
