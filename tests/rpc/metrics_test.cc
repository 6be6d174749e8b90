#include "runtime/telemetry/metrics.h"
#include "absl/strings/str_cat.h"

#include "tests/catch.h"
#include "tests/rpc/fake_service.h"
#include "tests/rpc/scrape.h"

namespace annulus {
namespace {

using test::Scrape;

void CheckLine(const std::string& text, const std::string& line) {
  CAPTURE(line, text);
  CHECK(text.find("\n" + line + "\n") != std::string::npos);
}

absl::StatusOr<std::unique_ptr<HttpDoor>> Serve(HttpPage metrics) {
  return HttpDoor::Start("127.0.0.1:0", {{"/metrics", std::move(metrics)}});
}

TEST_CASE("calls are counted by name and code, and the cluster's state is told at each scrape") {
  FakeService fake;
  MetricsService service(&fake);
  const auto endpoint = Serve([&] { return MetricsPage(service); });
  INFO(endpoint.status());
  REQUIRE(endpoint.ok());
  REQUIRE((*endpoint)->port() > 0);

  const auto created = service.Call(ContextSpec(), {});
  REQUIRE(created.ok());
  CHECK(absl::IsNotFound(service.Call(ReleaseRequest{1}, {}).status()));
  CHECK(absl::IsNotFound(service.Call(ReleaseRequest{2}, {}).status()));
  CHECK(service.Call(ReleaseRequest{created->id}, {}).ok());
  const std::vector<float> q(8);
  AttendRequest request;
  request.q = TensorView::Contiguous(q.data(), DType::kF32, 1, 1, 8);
  for (int i = 0; i < 3; ++i) REQUIRE(service.Call(request, {}).ok());

  std::string text = Scrape((*endpoint)->port());
  CheckLine(text, "annulus_requests_total{call=\"Release\",code=\"NOT_FOUND\"} 2");
  CheckLine(text, "annulus_requests_total{call=\"Release\",code=\"OK\"} 1");
  CheckLine(text, "annulus_requests_total{call=\"Attend\",code=\"OK\"} 3");
  CheckLine(text, "annulus_request_seconds_count{call=\"Attend\",code=\"OK\"} 3");
  CheckLine(text, "annulus_request_seconds_bucket{call=\"Attend\",code=\"OK\",le=\"+Inf\"} 3");
  CheckLine(text, "annulus_requests_in_flight{call=\"Attend\"} 0");
  CheckLine(text, "annulus_attend_moved_bytes_total{plan=\"group-cast\"} 3000");
  CheckLine(text, "annulus_attend_planned_bytes_total{plan=\"group-cast\"} 2700");
  CheckLine(text, "annulus_kv_bytes 111");
  CheckLine(text, "annulus_kv_bytes_limit 2000");
  CheckLine(text, "annulus_epoch 7");
  CheckLine(text, "annulus_calls_in_flight 5");
  CheckLine(text, "annulus_call_bytes_in_flight 640");
  CheckLine(text, "annulus_heartbeat_age_seconds{worker=\"3\"} 0.25");
  CHECK(text.find("annulus_heartbeat_age_seconds{worker=\"2\"}") == std::string::npos);
  CheckLine(text, "annulus_kv_dense_bytes 23456");
  CheckLine(text, "annulus_tenant_contexts{tenant=\"lab\"} 2");
  CheckLine(text, "annulus_tenant_kv_bytes{tenant=\"lab\"} 300");
  CheckLine(text, "annulus_tenant_calls_in_flight{tenant=\"lab\"} 1");
  CHECK(text.find("annulus_tenant_requests_total") == std::string::npos);  // nobody has a tenant
  CheckLine(text, "annulus_blocks{state=\"ok\"} 0");
  CheckLine(text, "annulus_contexts{state=\"degraded\"} 0");
  CheckLine(text, "annulus_workers{state=\"draining\"} 0");
  // Three queries of 8 f32; each answer 16 f32 of out and one of lse.
  CheckLine(text, "annulus_transport_bytes_total{transport=\"grpc\",direction=\"received\"} 96");
  CheckLine(text, "annulus_transport_bytes_total{transport=\"grpc\",direction=\"sent\"} 204");
  CheckLine(text, "annulus_contexts{state=\"ok\"} 1");
  CheckLine(text, "annulus_contexts{state=\"lost\"} 0");
  CheckLine(text, "annulus_contexts{state=\"moving\"} 0");
  CheckLine(text, "annulus_blocks{state=\"moving\"} 0");
  CheckLine(text, "annulus_workers{state=\"ready\"} 2");
  CheckLine(text, "annulus_workers{state=\"lost\"} 1");
  CheckLine(text, "annulus_status_up 1");

  fake.before = [](const char*, const CallContext&) { return absl::UnavailableError("gone"); };
  text = Scrape((*endpoint)->port());
  CheckLine(text, "annulus_status_up 0");
  CHECK(text.find("annulus_kv_bytes") == std::string::npos);
}

TEST_CASE("tenants are told by name, as many as there may be") {
  FakeService fake;
  MetricsService service(&fake);
  const auto endpoint = Serve([&] { return MetricsPage(service); });
  REQUIRE(endpoint.ok());
  for (int i = 0; i < 70; ++i) {
    CallContext call;
    call.caller.tenant = absl::StrCat("t", i);
    CHECK(service.Call(StatusRequest(), call).ok());
  }
  const std::string text = Scrape((*endpoint)->port());
  CheckLine(text, "annulus_tenant_requests_total{code=\"OK\",tenant=\"t0\"} 1");
  CheckLine(text, "annulus_tenant_requests_total{code=\"OK\",tenant=\"t63\"} 1");
  CheckLine(text, "annulus_tenant_requests_total{code=\"OK\",tenant=\"other\"} 6");
}

TEST_CASE("a process without a service tells a snapshot") {
  double value = 5;
  const auto endpoint = Serve([&] {
    return MetricsPage(
        {{"annulus_kv_bytes", "Held.", Metric::Kind::kGauge, value, {}},
         {"annulus_sent_bytes_total", "Sent.", Metric::Kind::kCounter, 7, {{"peer", "worker"}}},
         {"annulus_sent_bytes_total", "Sent.", Metric::Kind::kCounter, 8, {{"peer", "caller"}}}});
  });
  REQUIRE(endpoint.ok());
  CheckLine(Scrape((*endpoint)->port()), "annulus_kv_bytes 5");
  value = 6;
  const std::string text = Scrape((*endpoint)->port());
  CheckLine(text, "annulus_kv_bytes 6");
  CheckLine(text, "# TYPE annulus_sent_bytes_total counter");
  CheckLine(text, "annulus_sent_bytes_total{peer=\"worker\"} 7");
  CheckLine(text, "annulus_sent_bytes_total{peer=\"caller\"} 8");
}

TEST_CASE("a histogram is told in buckets that each count what is below") {
  Histogram waits({0.5, 2});
  for (const double seconds : {0.25, 1.0, 1.5, 8.0}) waits.Observe(seconds);
  Metric metric{"annulus_wait_seconds", "Waited.", Metric::Kind::kHistogram, 0, {{"queue", "a"}}};
  metric.histogram = waits.Read();
  const std::string text = "\n" + MetricsPage({metric}).body;
  CheckLine(text, "# TYPE annulus_wait_seconds histogram");
  CheckLine(text, "annulus_wait_seconds_bucket{queue=\"a\",le=\"0.5\"} 1");
  CheckLine(text, "annulus_wait_seconds_bucket{queue=\"a\",le=\"2\"} 3");
  CheckLine(text, "annulus_wait_seconds_bucket{queue=\"a\",le=\"+Inf\"} 4");
  CheckLine(text, "annulus_wait_seconds_count{queue=\"a\"} 4");
  CheckLine(text, "annulus_wait_seconds_sum{queue=\"a\"} 10.75");
}

}  // namespace
}  // namespace annulus
