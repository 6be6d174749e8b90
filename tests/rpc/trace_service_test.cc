// Calls as spans: of which trace they are, what is within them, and how they are written.
#include "runtime/telemetry/trace_service.h"

#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "annulus/client.h"
#include "runtime/telemetry/trace_file.h"
#include "tests/catch.h"
#include "tests/rpc/fake_service.h"
#include "tests/rpc/raw_server.h"
#include "tests/temp_folder.h"

namespace annulus {
namespace {

using nlohmann::json;

const std::string kTrace = "4bf92f3577b34da6a3ce929d0e0e4736";
const std::string kSpan = "00f067aa0ba902b7";
const std::string kParent = absl::StrCat("00-", kTrace, "-", kSpan, "-01");

struct Traced {
  TraceContext within;  // the last call's, as the inner service saw it
  std::vector<FinishedSpan> spans;
  FakeService fake;
  TraceService service{&fake, [this](const FinishedSpan& span) { spans.push_back(span); }};

  Traced() {
    fake.before = [this](const char*, const CallContext& call) {
      within = call.trace;
      return absl::OkStatus();
    };
  }
};

TEST_CASE("a call is a span below its caller's, and above what it asks for") {
  Traced traced;
  CallContext call;
  call.trace = *ParseTraceparent(kParent);
  REQUIRE(traced.service.Call(ContextSpec(), call).ok());
  REQUIRE(traced.spans.size() == 1);
  const FinishedSpan& span = traced.spans[0];
  CHECK(span.parent.trace_id == kTrace);
  CHECK(span.parent.span_id == kSpan);
  CHECK(span.span.name == "annulus.v1.Annulus/CreateContext");
  CHECK(span.span.begin_ns <= span.span.end_ns);
  CHECK(span.failure.empty());
  CHECK(traced.within.trace_id == kTrace);
  CHECK(traced.within.span_id == span.span_id);
  CHECK(span.span_id != kSpan);

  call.trace.sampled = false;
  REQUIRE(traced.service.Call(StatusRequest(), call).ok());
  CHECK(traced.spans.size() == 1);
  CHECK(traced.within.span_id == kSpan);  // its own workers may be asked to pass it on

  REQUIRE(traced.service.Call(StatusRequest(), {}).ok());
  REQUIRE(traced.spans.size() == 2);
  CHECK(traced.spans[1].parent.trace_id.size() == 32);
  CHECK(traced.spans[1].parent.span_id.empty());
  traced.fake.before = [](const char*, const CallContext&) { return absl::NotFoundError("no"); };
  CHECK(!traced.service.Call(ReleaseRequest{7}, {}).ok());
  CHECK(traced.spans[2].failure == "NOT_FOUND");
  CHECK(traced.spans[2].attributes[0].second == "7");
}

TEST_CASE("a span is a line of OTLP in JSON") {
  FinishedSpan span;
  span.parent = *ParseTraceparent(kParent);
  span.span_id = "1122334455667788";
  span.span = {"", "work \xff", 1'700'000'000'000'000'001, 1'700'000'000'000'000'005};
  span.failure = "NOT_FOUND";
  span.attributes = {{"annulus.request", "q\n1"}};
  span.parts = {{"coordinator", "plan", 1'700'000'000'000'000'002, 1'700'000'000'000'000'003}};
  const std::string line = OtlpLine(span, "annulus-coordinator", "0.0.0.0:7070");
  CHECK(line.find('\n') == std::string::npos);
  const json resource = json::parse(line)["resourceSpans"][0];
  CHECK(resource["resource"]["attributes"][0]["key"] == "service.name");
  CHECK(resource["resource"]["attributes"][0]["value"]["stringValue"] == "annulus-coordinator");
  const json spans = resource["scopeSpans"][0]["spans"];
  REQUIRE(spans.size() == 2);
  CHECK(spans[0]["traceId"] == kTrace);
  CHECK(spans[0]["parentSpanId"] == kSpan);
  CHECK(spans[0]["spanId"] == span.span_id);
  CHECK(spans[0]["startTimeUnixNano"] == "1700000000000000001");
  CHECK(spans[0]["endTimeUnixNano"] == "1700000000000000005");
  CHECK(spans[0]["status"]["code"] == 2);
  CHECK(spans[0]["attributes"][0]["value"]["stringValue"] == "q\n1");
  CHECK(spans[1]["parentSpanId"] == span.span_id);
  CHECK(spans[1]["name"] == "plan");

  const test::TempFolder folder;
  const auto file = TraceFile::Open(folder / "spans", "annulus-worker", "w");
  REQUIRE(file.ok());
  (*file)->Write(span);
  (*file)->Write(span);
  std::ifstream lines(folder / "spans");
  int count = 0;
  for (std::string text; std::getline(lines, text); ++count) CHECK(json::accept(text));
  CHECK(count == 2);
  CHECK(absl::IsInvalidArgument(TraceFile::Open(folder / "no/such", "a", "b").status()));
  CHECK(TraceFile::Open("", "a", "b").value() == nullptr);
}

TEST_CASE("a traceparent reaches the service by every form of call") {
  RawServer raw;
  std::mutex mutex;
  std::vector<std::string> seen;
  raw.service.before = [&](const char* name, const CallContext& call) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (call.trace.given()) seen.push_back(absl::StrCat(name, " ", ToTraceparent(call.trace)));
    return absl::OkStatus();
  };
  const auto client = Client::Connect({.endpoint = raw.endpoint(), .upload = Upload::kRelay});
  REQUIRE(client.ok());
  const CallOptions traced{.traceparent = kParent};
  CHECK((*client)->Status(traced).ok());
  const std::vector<float> values(64, 1.0f);
  AppendRequest append;
  append.k = append.v = TensorView::Contiguous(values.data(), DType::kF32, 1, 2, 8);
  CHECK((*client)->Append(append, traced).ok());
  AttendRequest attend;
  attend.q = append.k;
  attend.kv_len = 1;
  CHECK((*client)->Attend(attend, traced).ok());
  StepRequest step;
  step.q = append.k;
  CHECK((*client)->Step({step}, traced)[0].ok());
  CHECK((*client)->Step({step})[0].ok());  // on the same stream, in no trace
  CHECK(seen == std::vector<std::string>{"Status " + kParent, "Append " + kParent,
                                         "Attend " + kParent, "Attend " + kParent});
  const absl::Status bad = (*client)->Describe(1, {.traceparent = "00-1"}).status();
  CHECK(absl::IsInvalidArgument(bad));
  CHECK(bad.message().find("traceparent: \"00-1\"; expected") == 0);
  // What others send counts as absent where it is none.
  grpc::ClientContext context;
  context.AddMetadata("traceparent", "00-1");
  v1::ContextInfo info;
  CHECK(raw.stub->Describe(&context, v1::ContextRef(), &info).ok());
  CHECK(seen.size() == 4);
}

}  // namespace
}  // namespace annulus
