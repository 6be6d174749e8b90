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
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "attention/block_set.h"
#include "base/status.h"
#include "runtime/rpc/protocol/channel.h"

namespace annulus {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

constexpr absl::Duration kScrapeTimeout = absl::Seconds(1);

// Workers whose heartbeat is told by name: as many series as workers come and go.
constexpr int kWorkersMax = 1024;

// From a decode step to a prefill of minutes.
const prometheus::Histogram::BucketBoundaries& LatencyBounds() {
  static const prometheus::Histogram::BucketBoundaries bounds = {
      0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 100, 300};
  return bounds;
}

std::string PlanLabel(absl::string_view plan) {
  return ParsePlanKind(plan).ok() ? std::string(plan.data(), plan.size()) : "other";
}

ClientMetric Value(MetricType type, double value, std::vector<ClientMetric::Label> labels) {
  ClientMetric metric;
  metric.label = std::move(labels);
  (type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  return metric;
}

// Collects families from single values, those of one name together as the format wants them.
class Families {
 public:
  void Add(const std::string& name, const std::string& help, MetricType type, double value,
           std::vector<ClientMetric::Label> labels = {}) {
    MetricFamily& family = by_name_[name];
    if (family.metric.empty()) {
      family.name = name;
      family.help = help;
      family.type = type;
    }
    family.metric.push_back(Value(family.type, value, std::move(labels)));
  }

  void AddGauge(const std::string& name, const std::string& help, double value,
                std::vector<ClientMetric::Label> labels = {}) {
    Add(name, help, MetricType::Gauge, value, std::move(labels));
  }

  std::vector<MetricFamily> Take() && {
    std::vector<MetricFamily> families;
    for (auto& [name, family] : by_name_) families.push_back(std::move(family));
    return families;
  }

 private:
  std::map<std::string, MetricFamily> by_name_;
};

// Counts by state; the states are the service's few, anything else is "other".
template <typename Items>
void AddByState(const std::string& name, const std::string& help, const Items& items,
                std::map<std::string, int> counts, Families* families) {
  for (const auto& item : items) {
    const auto found = counts.find(item.state);
    ++(found == counts.end() ? counts["other"] : found->second);
  }
  for (const auto& [state, count] : counts) {
    families->AddGauge(name, help, count, {{"state", state}});
  }
}

// Blocks of every layer and KV head by the state of their context, and dense bytes.
void AddBlocks(const ClusterStatus& status, Families* families) {
  std::map<std::string, double> blocks = {
      {"ok", 0}, {"moving", 0}, {"degraded", 0}, {"recovering", 0}, {"lost", 0}};
  double dense_bytes = 0;
  for (const ContextInfo& context : status.contexts) {
    const auto found = blocks.find(context.state);
    double& count = found == blocks.end() ? blocks["other"] : found->second;
    for (const int64_t tokens : context.tokens) {
      count += static_cast<double>(BlocksOf(tokens) * context.spec.kv_heads);
    }
    dense_bytes += static_cast<double>(context.dense_kv_bytes);
  }
  for (const auto& [state, count] : blocks) {
    families->AddGauge("annulus_blocks", "Blocks of all layers and KV heads by context state.",
                       count, {{"state", state}});
  }
  families->AddGauge("annulus_kv_dense_bytes", "KV bytes of contexts if nothing was evicted.",
                     dense_bytes);
}

void AddHeartbeats(const ClusterStatus& status, Families* families) {
  int told = 0;
  for (const WorkerStatus& worker : status.workers) {
    if (worker.state == "lost" || worker.state == "left" || ++told > kWorkersMax) continue;
    families->AddGauge("annulus_heartbeat_age_seconds", "Since a worker's last sign of life.",
                       worker.heartbeat_age_s, {{"worker", absl::StrCat(worker.id)}});
  }
}

void AddStatus(const absl::StatusOr<ClusterStatus>& status, Families* into) {
  Families& families = *into;
  families.AddGauge("annulus_status_up", "Whether the service told its status, 0 or 1.",
                    status.ok() ? 1 : 0);
  if (!status.ok()) return;
  double kv_bytes = 0;
  double kv_bytes_limit = 0;
  for (const WorkerStatus& worker : status->workers) {
    if (worker.state == "lost" || worker.state == "left") continue;
    kv_bytes += static_cast<double>(worker.kv_bytes);
    kv_bytes_limit += static_cast<double>(worker.kv_bytes_limit);
  }
  families.AddGauge("annulus_kv_bytes", "KV bytes held by the ready workers.", kv_bytes);
  families.AddGauge("annulus_kv_bytes_limit", "KV bytes the ready workers may hold.",
                    kv_bytes_limit);
  families.AddGauge("annulus_epoch", "Version of the shard map.",
                    static_cast<double>(status->epoch));
  families.AddGauge("annulus_calls_in_flight", "Calls that the coordinator has under way.",
                    static_cast<double>(status->in_flight));
  families.AddGauge("annulus_call_bytes_in_flight", "Bytes of their tensors.",
                    static_cast<double>(status->in_flight_bytes));
  AddByState("annulus_contexts", "Contexts by state.", status->contexts,
             {{"ok", 0}, {"moving", 0}, {"degraded", 0}, {"recovering", 0}, {"lost", 0}},
             &families);
  AddByState("annulus_workers", "Workers by state.", status->workers,
             {{"ready", 0}, {"draining", 0}, {"left", 0}, {"lost", 0}}, &families);
  AddBlocks(*status, &families);
  AddHeartbeats(*status, &families);
}

void AddSnapshot(const MetricsSnapshot& snapshot, Families* families) {
  for (const Metric& metric : snapshot()) {
    std::vector<ClientMetric::Label> labels;
    for (const auto& [name, value] : metric.labels) labels.push_back({name, value});
    families->Add(metric.name, metric.help,
                  metric.kind == Metric::Kind::kCounter ? MetricType::Counter : MetricType::Gauge,
                  metric.value, std::move(labels));
  }
}

class SnapshotCollectable final : public prometheus::Collectable {
 public:
  explicit SnapshotCollectable(MetricsSnapshot snapshot) : snapshot_(std::move(snapshot)) {}

  std::vector<MetricFamily> Collect() const override {
    Families families;
    AddSnapshot(snapshot_, &families);
    return std::move(families).Take();
  }

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
    Families single;
    const char* const help = "Payload bytes that went over a transport.";
    for (const auto& [direction, bytes] :
         {std::pair("received", &bytes_received), {"sent", &bytes_sent}}) {
      single.Add("annulus_transport_bytes_total", help, MetricType::Counter,
                 static_cast<double>(bytes->load()),
                 {{"transport", "grpc"}, {"direction", direction}});
    }
    if (more) AddSnapshot(more, &single);
    AddStatus(inner->Status(call), &single);
    for (MetricFamily& family : std::move(single).Take()) families.push_back(std::move(family));
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
