#include "runtime/cli/coordinator_pages.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/cli/options/service_options.h"
#include "runtime/cli/report/report.h"
#include "runtime/cli/report/status_page.h"

namespace annulus {
namespace {

Metric Gauge(const char* name, const char* help, double value) {
  return {name, help, Metric::Kind::kGauge, value, {}};
}

Metric Counter(const char* name, const char* help, uint64_t value) {
  return {name, help, Metric::Kind::kCounter, static_cast<double>(value), {}};
}

void AddView(const ClusterView& view, std::vector<Metric>* metrics) {
  metrics->push_back(
      Counter("annulus_workers_joined_total", "Workers that joined.", view.workers_joined));
  metrics->push_back(
      Counter("annulus_workers_left_total", "Workers that left in good order.", view.workers_left));
  metrics->push_back(Counter("annulus_workers_lost_total",
                             "Workers that died, were silent or were cut off.", view.workers_lost));
  metrics->push_back(
      Gauge("annulus_moves_running", "Contexts that move now.", view.moving ? 1 : 0));
  for (const auto& [result, count] :
       {std::pair("done", view.moves_done), {"failed", view.moves_failed}}) {
    metrics->push_back(
        Counter("annulus_moves_total", "Moves of contexts to other workers that ended.", count));
    metrics->back().labels = {{"result", result}};
  }
  metrics->push_back(Counter("annulus_moved_bytes_total",
                             "KV bytes that moves copied, those that failed included.",
                             view.moved_bytes));
  metrics->push_back(Gauge("annulus_contexts_recovering",
                           "Contexts that wait for workers to join again.",
                           static_cast<double>(view.contexts_recovering)));
  metrics->push_back(Gauge("annulus_recovery_seconds",
                           "How long contexts have been waiting for workers, or last did.",
                           absl::ToDoubleSeconds(view.recovery_time)));
}

void AddLoad(const RpcLoad& load, TenantNames& names, std::vector<Metric>* metrics) {
  metrics->push_back(Gauge("annulus_transfers", "Calls that bring or fetch tensors, or wait to.",
                           static_cast<double>(load.transfers)));
  metrics->push_back(Gauge("annulus_step_streams", "Streams of steps that are open.",
                           static_cast<double>(load.step_streams)));
  metrics->push_back(Gauge("annulus_calls_waiting", "Calls that wait for their turn.",
                           static_cast<double>(load.calls_waiting)));
  std::map<std::string, int64_t> waiting;
  for (const auto& [tenant, calls] : load.calls_waiting_by_tenant) {
    waiting[names.NameOf(tenant)] += calls;
  }
  for (const auto& [tenant, calls] : waiting) {
    metrics->push_back(Gauge("annulus_tenant_calls_waiting",
                             "Calls of a tenant that wait for their turn.",
                             static_cast<double>(calls)));
    metrics->back().labels = {{"tenant", tenant}};
  }
  metrics->push_back(QueueWait("calls", load.queue_wait));
  for (const auto& [reason, count] : load.refused) {
    metrics->push_back(CallsRefused(reason, count));
  }
}

absl::Status Live(const CoordinatorParts& parts) {
  if (!parts.server->Answers(kPagePatience)) {
    return absl::UnavailableError("no connections are accepted");
  }
  parts.coordinator->View();  // its lock can be had
  return absl::OkStatus();
}

absl::Status Ready(const CoordinatorParts& parts) {
  if (parts.draining) return absl::UnavailableError("it stops");
  ANNULUS_RETURN_IF_ERROR(Live(parts));
  const int64_t waiting = parts.coordinator->View().contexts_recovering;
  if (waiting == 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(waiting, " contexts wait for workers to join again"));
}

// Callers who say who they are see the workers' network and the contexts' owners as admins alone;
// whoever asks for a page says nothing.
void KeepBack(ClusterStatus* status) {
  for (WorkerStatus& worker : status->workers) worker.address.clear();
  for (ContextInfo& context : status->contexts) context.spec.owner.clear();
}

}  // namespace

std::vector<Metric> MetricsOf(CoordinatorParts& parts) {
  const Messenger::Counters fabric = parts.coordinator->fabric_counters();
  std::vector<Metric> metrics = MetricsOf(parts.connections);
  metrics.push_back(TransportBytes("ucx", "sent", fabric.bytes_sent));
  metrics.push_back(TransportBytes("ucx", "received", fabric.bytes_received));
  AddSecurityMetrics(parts.security, *parts.door, parts.authenticator, &metrics);
  AddTlsMetrics("clients", "tls",
                parts.server == nullptr ? TlsFiles::Reading() : parts.server->tls(), &metrics);
  AddView(parts.coordinator->View(), &metrics);
  if (parts.server != nullptr) AddLoad(parts.server->Load(), parts.tenants, &metrics);
  AddProcessMetrics(parts.pages, &metrics);
  return metrics;
}

ProcessPages PagesOf(CoordinatorParts& parts, const MetricsService& service) {
  ProcessPages pages;
  pages.live = [&] { return Live(parts); };
  pages.ready = [&] { return Ready(parts); };
  pages.metrics = [&] { return MetricsPage(service); };
  const auto of_status = [&](HttpAnswer (*answer)(std::string), auto write) {
    return [&parts, answer, write] {
      absl::StatusOr<ClusterStatus> status = parts.coordinator->Call(StatusRequest(), {});
      if (!status.ok()) return ProbeAnswer(status.status());
      if (parts.authenticator != nullptr) KeepBack(&*status);
      return answer(write(*status, parts.coordinator->View(kPlacesShownMax)));
    };
  };
  pages.status = of_status(
      HtmlAnswer, [](const auto& status, const auto& view) { return StatusPage(status, view); });
  pages.status_json = of_status(
      JsonAnswer, [](const auto& status, const auto& view) { return ToJson(status, view); });
  return pages;
}

}  // namespace annulus
