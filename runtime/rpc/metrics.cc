#include "runtime/rpc/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <atomic>
#include <exception>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/rpc/metric_families.h"
#include "runtime/rpc/protocol/channel.h"

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

class SnapshotCollectable final : public prometheus::Collectable {
 public:
  explicit SnapshotCollectable(MetricsSnapshot snapshot) : snapshot_(std::move(snapshot)) {}

  std::vector<MetricFamily> Collect() const override { return FamiliesOf(snapshot_()); }

 private:
  const MetricsSnapshot snapshot_;
};

}  // namespace

struct MetricsService::State final : public prometheus::Collectable {
  State(Service* inner, MetricsSnapshot more)
      : inner(inner),
        more(std::move(more)),
        requests(prometheus::BuildCounter()
                     .Name("annulus_requests_total")
                     .Help("Calls that ended, by status code.")
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
    for (MetricFamily& family : FamiliesOf(inner->Status(call))) {
      families.push_back(std::move(family));
    }
    return families;
  }

  void CountBytes(std::initializer_list<const TensorView*> received) {
    for (const TensorView* view : received) {
      bytes_received += view->size() * static_cast<int64_t>(SizeOf(view->dtype));
    }
  }
  template <typename Result>  // of an Attend or a Step
  void CountAnswer(const absl::StatusOr<Result>& result) {
    if (result.ok()) bytes_sent += result->out.size_bytes() + result->lse.size_bytes();
  }

  // Runs `body` (of absl::Status or absl::StatusOr) counted as `call`.
  template <typename Body>
  auto Count(const char* call, Body body) {
    prometheus::Gauge& running = in_flight.Add({{"call", call}});
    running.Increment();
    const absl::Time begin = absl::Now();
    auto result = body();
    const double elapsed_s = absl::ToDoubleSeconds(absl::Now() - begin);
    running.Decrement();
    const prometheus::Labels labels = {{"call", call}, {"code", CodeOf(result)}};
    requests.Add(labels).Increment();
    seconds.Add(labels, LatencyBounds()).Observe(elapsed_s);
    return result;
  }

  static std::string CodeOf(const absl::Status& status) {
    return absl::StatusCodeToString(status.code());
  }
  template <typename T>
  static std::string CodeOf(const absl::StatusOr<T>& result) {
    return CodeOf(result.status());
  }

  Service* const inner;
  const MetricsSnapshot more;
  std::atomic<int64_t> bytes_received = 0;
  std::atomic<int64_t> bytes_sent = 0;
  prometheus::Registry registry;
  prometheus::Family<prometheus::Counter>& requests;
  prometheus::Family<prometheus::Histogram>& seconds;
  prometheus::Family<prometheus::Gauge>& in_flight;
  prometheus::Family<prometheus::Counter>& moved;
  prometheus::Family<prometheus::Counter>& planned;
};

MetricsService::MetricsService(Service* inner, MetricsSnapshot more)
    : state_(std::make_shared<State>(inner, std::move(more))) {}
MetricsService::~MetricsService() = default;

absl::StatusOr<ContextInfo> MetricsService::CreateContext(const ContextSpec& spec,
                                                          const CallContext& call) {
  return state_->Count("CreateContext", [&] { return state_->inner->CreateContext(spec, call); });
}

absl::StatusOr<AppendResult> MetricsService::Append(const AppendRequest& request,
                                                    const CallContext& call) {
  state_->CountBytes({&request.k, &request.v});
  return state_->Count("Append", [&] { return state_->inner->Append(request, call); });
}

absl::StatusOr<AppendResult> MetricsService::AppendDirect(const DirectAppend& request,
                                                          const GrantSink& granted,
                                                          const CallContext& call) {
  return state_->Count("AppendDirect",
                       [&] { return state_->inner->AppendDirect(request, granted, call); });
}

absl::StatusOr<AttendResult> MetricsService::Attend(const AttendRequest& request,
                                                    const CallContext& call) {
  state_->CountBytes({&request.q});
  absl::StatusOr<AttendResult> result =
      state_->Count("Attend", [&] { return state_->inner->Attend(request, call); });
  state_->CountAnswer(result);
  if (result.ok()) {
    const prometheus::Labels labels = {{"plan", PlanLabel(result->stats.plan)}};
    state_->moved.Add(labels).Increment(static_cast<double>(result->stats.bytes_moved));
    state_->planned.Add(labels).Increment(static_cast<double>(result->stats.planned_bytes));
  }
  return result;
}

std::vector<absl::StatusOr<StepResult>> MetricsService::Step(absl::Span<const StepRequest> requests,
                                                             const CallContext& call) {
  for (const StepRequest& step : requests) state_->CountBytes({&step.k, &step.v, &step.q});
  std::vector<absl::StatusOr<StepResult>> results;
  // A batch is one call; its code is that of the first that failed.
  (void)state_->Count("Step", [&] {
    results = state_->inner->Step(requests, call);
    for (const absl::StatusOr<StepResult>& result : results) {
      if (!result.ok()) return result.status();
    }
    return absl::OkStatus();
  });
  for (const absl::StatusOr<StepResult>& result : results) state_->CountAnswer(result);
  return results;
}

absl::StatusOr<ContextInfo> MetricsService::Fork(const ForkRequest& request,
                                                 const CallContext& call) {
  return state_->Count("Fork", [&] { return state_->inner->Fork(request, call); });
}

absl::StatusOr<ContextInfo> MetricsService::Truncate(const TruncateRequest& request,
                                                     const CallContext& call) {
  return state_->Count("Truncate", [&] { return state_->inner->Truncate(request, call); });
}

absl::StatusOr<std::vector<ContextInfo>> MetricsService::List(const ListRequest& request,
                                                              const CallContext& call) {
  return state_->Count("List", [&] { return state_->inner->List(request, call); });
}

absl::Status MetricsService::Release(ContextId context, const CallContext& call) {
  return state_->Count("Release", [&] { return state_->inner->Release(context, call); });
}

absl::StatusOr<ContextInfo> MetricsService::Describe(ContextId context, const CallContext& call) {
  return state_->Count("Describe", [&] { return state_->inner->Describe(context, call); });
}

std::vector<absl::Status> MetricsService::KeepAlive(absl::Span<const ContextId> contexts,
                                                    const CallContext& call) {
  std::vector<absl::Status> renewed;
  // Is one call; its code is that of the first context that failed.
  (void)state_->Count("KeepAlive", [&] {
    renewed = state_->inner->KeepAlive(contexts, call);
    for (const absl::Status& status : renewed) {
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  });
  return renewed;
}

absl::StatusOr<ClusterStatus> MetricsService::Status(const CallContext& call) {
  return state_->Count("Status", [&] { return state_->inner->Status(call); });
}

struct MetricsEndpoint::Parts {
  std::shared_ptr<prometheus::Collectable> collectable;  // the exposer holds it weakly
  std::unique_ptr<prometheus::Exposer> exposer;
  int port = 0;
};

MetricsEndpoint::MetricsEndpoint(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
MetricsEndpoint::~MetricsEndpoint() = default;

int MetricsEndpoint::port() const {
  return parts_->port;
}

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Start(
    const std::string& listen, const MetricsService& service) {
  auto parts = std::make_unique<Parts>();
  parts->collectable = service.state_;
  return Serve(listen, std::move(parts));
}

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Start(const std::string& listen,
                                                                        MetricsSnapshot snapshot) {
  auto parts = std::make_unique<Parts>();
  parts->collectable = std::make_shared<SnapshotCollectable>(std::move(snapshot));
  return Serve(listen, std::move(parts));
}

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Serve(
    const std::string& listen, std::unique_ptr<Parts> parts) {
  // The HTTP server inside would take a port alone, on all interfaces, or several addresses.
  ANNULUS_RETURN_IF_ERROR(CheckHostPort("metrics address", listen));
  const auto failed = [&](absl::string_view why) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics on \"", listen, "\": ", why,
                     "; expected an address of this machine and a free port"));
  };
  try {
    // The short timeout frees the few threads from connections that never ask anything.
    parts->exposer = std::make_unique<prometheus::Exposer>(std::vector<std::string>{
        "listening_ports", listen, "num_threads", "4", "request_timeout_ms", "2000"});
    parts->exposer->RegisterCollectable(parts->collectable);
  } catch (const std::exception& error) {
    return failed(error.what());
  }
  const std::vector<int> ports = parts->exposer->GetListeningPorts();
  if (ports.empty()) return failed("no port opened");
  parts->port = ports.front();
  return std::unique_ptr<MetricsEndpoint>(new MetricsEndpoint(std::move(parts)));
}

}  // namespace annulus
