#include "runtime/telemetry/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <atomic>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/telemetry/metric_families.h"
#include "runtime/telemetry/tenant_names.h"

namespace annulus {
namespace {

using prometheus::MetricFamily;

constexpr absl::Duration kScrapeTimeout = absl::Seconds(1);

// From a decode step to a prefill of minutes.
const prometheus::Histogram::BucketBoundaries& LatencyBounds() {
  static const prometheus::Histogram::BucketBoundaries bounds = {
      0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 100, 300};
  return bounds;
}

std::string PlanLabel(absl::string_view plan) {
  return ParsePlanKind(plan).ok() ? std::string(plan.data(), plan.size()) : "other";
}

// Of a request's tensors, as they were sent.
template <typename Request>
int64_t TensorBytesOf(const Request& request) {
  return 0;
}
int64_t TensorBytesOf(const TensorView& view) {
  return view.size() * static_cast<int64_t>(SizeOf(view.dtype));
}
int64_t ListBytesOf(const std::vector<CallList>& lists) {
  int64_t bytes = 0;
  for (const CallList& list : lists) bytes += list.data == nullptr ? 0 : list.data->size_bytes();
  return bytes;
}
int64_t TensorBytesOf(const AppendRequest& request) {
  return TensorBytesOf(request.k) + TensorBytesOf(request.v);
}
int64_t TensorBytesOf(const AttendRequest& request) {
  return TensorBytesOf(request.q) + TensorBytesOf(request.index.q) + ListBytesOf(request.lists);
}
int64_t TensorBytesOf(const StepsRequest& request) {
  int64_t bytes = 0;
  for (const StepRequest& step : request.steps) {
    bytes += TensorBytesOf(step.k) + TensorBytesOf(step.v) + TensorBytesOf(step.q) +
             TensorBytesOf(step.index.q) + ListBytesOf(step.lists);
  }
  return bytes;
}

HttpAnswer PageOf(const std::vector<MetricFamily>& families) {
  return {.type = "text/plain; version=0.0.4; charset=utf-8",
          .body = prometheus::TextSerializer().Serialize(families)};
}

}  // namespace

struct MetricsService::State final : public prometheus::Collectable {
  State(Service* inner, MetricsSnapshot more)
      : inner(inner),
        more(std::move(more)),
        requests(prometheus::BuildCounter()
                     .Name("annulus_requests_total")
                     .Help("Calls that ended, by status code.")
                     .Register(registry)),
        tenant_requests(prometheus::BuildCounter()
                            .Name("annulus_tenant_requests_total")
                            .Help("Calls of a tenant that ended, by status code.")
                            .Register(registry)),
        seconds(prometheus::BuildHistogram()
                    .Name("annulus_request_seconds")
                    .Help("Time of calls from whole request to answer.")
                    .Register(registry)),
        in_flight(prometheus::BuildGauge()
                      .Name("annulus_requests_in_flight")
                      .Help("Calls under way.")
                      .Register(registry)),
        moved(prometheus::BuildCounter()
                  .Name("annulus_attend_moved_bytes_total")
                  .Help("Payload bytes that Attend calls moved.")
                  .Register(registry)),
        planned(prometheus::BuildCounter()
                    .Name("annulus_attend_planned_bytes_total")
                    .Help("Payload bytes that the plans of Attend calls said.")
                    .Register(registry)) {}

  std::vector<MetricFamily> Collect() const override {
    std::vector<MetricFamily> families = registry.Collect();
    CallContext call;
    call.deadline = absl::Now() + kScrapeTimeout;
    std::vector<Metric> counts;
    if (more) counts = more();
    for (const auto& [direction, bytes] :
         {std::pair("received", &bytes_received), {"sent", &bytes_sent}}) {
      counts.push_back({"annulus_transport_bytes_total",
                        "Payload bytes that went over a transport.",
                        Metric::Kind::kCounter,
                        static_cast<double>(bytes->load()),
                        {{"transport", "grpc"}, {"direction", direction}}});
    }
    for (MetricFamily& family : FamiliesOf(counts)) families.push_back(std::move(family));
    for (MetricFamily& family : FamiliesOf(inner->Call(StatusRequest(), call))) {
      families.push_back(std::move(family));
    }
    return families;
  }

  // Answers without tensors.
  template <typename Answer>
  void CountAnswer(const Answer& answer) {}
  void CountAnswer(const AttendResult& answer) {
    bytes_sent += answer.out.size_bytes() + answer.lse.size_bytes();
    const prometheus::Labels labels = {{"plan", PlanLabel(answer.stats.plan)}};
    moved.Add(labels).Increment(static_cast<double>(answer.stats.bytes_moved));
    planned.Add(labels).Increment(static_cast<double>(answer.stats.planned_bytes));
  }
  void CountAnswer(const StepResults& answer) {
    for (const absl::StatusOr<StepResult>& step : answer) {
      if (step.ok()) bytes_sent += step->out.size_bytes() + step->lse.size_bytes();
    }
  }

  template <typename Request>
  absl::StatusOr<CallSize> Check(const Request& header, const CallContext& call) {
    const absl::Time begin = absl::Now();
    absl::StatusOr<CallSize> size = inner->Check(header, call);
    if (!size.ok()) {
      CountEnd(CallOf<Request>().name, call.caller.tenant, size.status().code(),
               absl::Now() - begin);
    }
    return size;
  }

  void CountEnd(const char* call, const std::string& tenant, absl::StatusCode code,
                absl::Duration took) {
    const prometheus::Labels labels = {{"call", call}, {"code", absl::StatusCodeToString(code)}};
    requests.Add(labels).Increment();
    seconds.Add(labels, LatencyBounds()).Observe(absl::ToDoubleSeconds(took));
    if (tenant.empty()) return;
    tenant_requests
        .Add({{"tenant", tenants.NameOf(tenant)}, {"code", absl::StatusCodeToString(code)}})
        .Increment();
  }

  // Runs `body` counted as `call` of this tenant.
  template <typename Body>
  auto Count(const char* call, const std::string& tenant, Body body) {
    prometheus::Gauge& running = in_flight.Add({{"call", call}});
    running.Increment();
    const absl::Time begin = absl::Now();
    auto result = body();
    const absl::Duration took = absl::Now() - begin;
    running.Decrement();
    CountEnd(call, tenant, result.ok() ? CodeOf(*result) : result.status().code(), took);
    return result;
  }

  Service* const inner;
  const MetricsSnapshot more;
  std::atomic<int64_t> bytes_received = 0;
  std::atomic<int64_t> bytes_sent = 0;
  prometheus::Registry registry;
  TenantNames tenants;
  prometheus::Family<prometheus::Counter>& requests;
  prometheus::Family<prometheus::Counter>& tenant_requests;
  prometheus::Family<prometheus::Histogram>& seconds;
  prometheus::Family<prometheus::Gauge>& in_flight;
  prometheus::Family<prometheus::Counter>& moved;
  prometheus::Family<prometheus::Counter>& planned;
};

MetricsService::MetricsService(Service* inner, MetricsSnapshot more)
    : state_(std::make_shared<State>(inner, std::move(more))) {}
MetricsService::~MetricsService() = default;

absl::StatusOr<CallSize> MetricsService::Check(const AppendRequest& header,
                                               const CallContext& call) {
  return state_->Check(header, call);
}

absl::StatusOr<CallSize> MetricsService::Check(const AttendRequest& header,
                                               const CallContext& call) {
  return state_->Check(header, call);
}

absl::StatusOr<AnyAnswer> MetricsService::Answer(const AnyRequest& request,
                                                 const CallContext& call) {
  return AnswerAny(request, [&](const auto& typed) {
    state_->bytes_received += TensorBytesOf(typed);
    auto answer = state_->Count(CallOf<std::decay_t<decltype(typed)>>().name, call.caller.tenant,
                                [&] { return state_->inner->Call(typed, call); });
    if (answer.ok()) state_->CountAnswer(*answer);
    return answer;
  });
}

HttpAnswer MetricsPage(const MetricsService& service) {
  return PageOf(service.state_->Collect());
}

HttpAnswer MetricsPage(const std::vector<Metric>& metrics) {
  return PageOf(FamiliesOf(metrics));
}

}  // namespace annulus
