#include "runtime/telemetry/metric_families.h"

#include <prometheus/metric_family.h>

#include <limits>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/block_set.h"
#include "runtime/telemetry/tenant_names.h"

namespace annulus {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// Workers whose heartbeat is told by name: as many series as workers come and go.
constexpr int kWorkersToldMax = 1024;

MetricType TypeOf(Metric::Kind kind) {
  switch (kind) {
    case Metric::Kind::kGauge:
      return MetricType::Gauge;
    case Metric::Kind::kCounter:
      return MetricType::Counter;
    case Metric::Kind::kHistogram:
      break;
  }
  return MetricType::Histogram;
}

ClientMetric::Histogram HistogramOf(const Histogram::Reading& reading) {
  ClientMetric::Histogram histogram;
  histogram.sample_sum = reading.sum;
  for (size_t i = 0; i < reading.counts.size(); ++i) {
    histogram.sample_count += reading.counts[i];
    const bool last = i == reading.bounds.size();
    histogram.bucket.push_back(
        {histogram.sample_count,
         last ? std::numeric_limits<double>::infinity() : reading.bounds[i]});
  }
  return histogram;
}

// Collects families from single values, those of one name together as the format wants them.
class Families {
 public:
  void Add(const Metric& told) {
    MetricFamily& family = by_name_[told.name];
    if (family.metric.empty()) {
      family.name = told.name;
      family.help = told.help;
      family.type = TypeOf(told.kind);
    }
    ClientMetric& metric = family.metric.emplace_back();
    for (const auto& [name, value] : told.labels) metric.label.push_back({name, value});
    metric.gauge.value = metric.counter.value = told.value;
    metric.histogram = HistogramOf(told.histogram);
  }

  void AddGauge(const std::string& name, const std::string& help, double value,
                std::vector<std::pair<std::string, std::string>> labels = {}) {
    Add({name, help, Metric::Kind::kGauge, value, std::move(labels)});
  }
  void AddCounter(const std::string& name, const std::string& help, int64_t value) {
    Add({name, help, Metric::Kind::kCounter, static_cast<double>(value), {}});
  }

  std::vector<MetricFamily> Take() && {
    std::vector<MetricFamily> families;
    for (auto& [name, family] : by_name_) families.push_back(std::move(family));
    return families;
  }

 private:
  std::map<std::string, MetricFamily> by_name_;
};

// Sums of `value` of each item by state; what is in none of `states` is "other".
template <typename States, typename Items, typename Value>
void AddByState(const std::string& name, const std::string& help, const States& states,
                const Items& items, Value value, Families* families) {
  std::map<std::string, double> sums;
  for (const auto state : states) sums[std::string(Name(state))] = 0;
  for (const auto& item : items)
    sums[sums.contains(item.state) ? item.state : "other"] += value(item);
  for (const auto& [state, sum] : sums) families->AddGauge(name, help, sum, {{"state", state}});
}

// Of every layer and KV head.
double BlocksIn(const ContextInfo& context) {
  double blocks = 0;
  for (const int64_t tokens : context.tokens) {
    blocks += static_cast<double>(BlocksOf(tokens) * context.spec.kv_heads);
  }
  return blocks;
}

bool IsUp(const WorkerStatus& worker) {
  return worker.state == Name(WorkerState::kReady) || worker.state == Name(WorkerState::kDraining);
}

void AddHeartbeats(const ClusterStatus& status, Families* families) {
  int told = 0;
  for (const WorkerStatus& worker : status.workers) {
    if (!IsUp(worker) || ++told > kWorkersToldMax) continue;
    families->AddGauge("annulus_heartbeat_age_seconds", "Since a worker's last sign of life.",
                       worker.heartbeat_age_s, {{"worker", absl::StrCat(worker.id)}});
  }
}

// The first by name, and the others together.
void AddTenants(const ClusterStatus& status, Families* families) {
  std::map<std::string, TenantStatus> told;
  size_t named = 0;
  for (const TenantStatus& tenant : status.tenants) {
    TenantStatus& sum = told[++named <= kTenantsNamedMax ? tenant.tenant : kOtherTenants];
    sum.contexts += tenant.contexts;
    sum.kv_bytes += tenant.kv_bytes;
    sum.in_flight += tenant.in_flight;
    sum.in_flight_bytes += tenant.in_flight_bytes;
  }
  for (const auto& [name, sum] : told) {
    const auto add = [&, &name = name](const char* metric, const char* help, int64_t value) {
      families->AddGauge(metric, help, static_cast<double>(value), {{"tenant", name}});
    };
    add("annulus_tenant_contexts", "Contexts of a tenant.", sum.contexts);
    add("annulus_tenant_kv_bytes", "KV bytes of a tenant; blocks that forks share count once.",
        sum.kv_bytes);
    add("annulus_tenant_calls_in_flight", "Calls of a tenant under way.", sum.in_flight);
    add("annulus_tenant_call_bytes_in_flight", "Bytes of their tensors.", sum.in_flight_bytes);
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
    if (!IsUp(worker)) continue;
    kv_bytes += static_cast<double>(worker.kv_bytes);
    kv_bytes_limit += static_cast<double>(worker.kv_bytes_limit);
  }
  families.AddGauge("annulus_kv_bytes", "KV bytes held by the ready workers.", kv_bytes);
  families.AddGauge("annulus_kv_bytes_limit", "KV bytes the ready workers may hold.",
                    kv_bytes_limit);
  families.AddGauge("annulus_epoch", "Version of the shard map.",
                    static_cast<double>(status->epoch));
  families.AddCounter("annulus_contexts_expired_total", "Contexts whose lease passed.",
                      status->contexts_expired);
  families.AddCounter("annulus_contexts_evicted_total", "Contexts that went because KV was full.",
                      status->contexts_evicted);
  families.AddGauge("annulus_calls_in_flight", "Calls that the coordinator has under way.",
                    static_cast<double>(status->in_flight));
  families.AddGauge("annulus_call_bytes_in_flight", "Bytes of their tensors.",
                    static_cast<double>(status->in_flight_bytes));
  double dense_bytes = 0;
  for (const ContextInfo& context : status->contexts) {
    dense_bytes += static_cast<double>(context.dense_kv_bytes);
  }
  families.AddGauge("annulus_kv_dense_bytes", "KV bytes of contexts if nothing was evicted.",
                    dense_bytes);
  const auto one = [](const auto&) { return 1.0; };
  AddByState("annulus_contexts", "Contexts by state.", kContextStates, status->contexts, one,
             &families);
  AddByState("annulus_workers", "Workers by state.", kWorkerStates, status->workers, one,
             &families);
  AddByState("annulus_blocks", "Blocks of all layers and KV heads by context state.",
             kContextStates, status->contexts, BlocksIn, &families);
  AddHeartbeats(*status, &families);
  AddTenants(*status, &families);
}

}  // namespace

std::vector<MetricFamily> FamiliesOf(absl::Span<const Metric> metrics) {
  Families families;
  for (const Metric& metric : metrics) families.Add(metric);
  return std::move(families).Take();
}

std::vector<MetricFamily> FamiliesOf(const absl::StatusOr<ClusterStatus>& status) {
  Families families;
  AddStatus(status, &families);
  return std::move(families).Take();
}

}  // namespace annulus
