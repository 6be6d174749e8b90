#include "runtime/cli/worker_pages.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/cli/options/service_options.h"
#include "runtime/cli/report/status_page.h"
#include "runtime/cli/report/units.h"

namespace annulus {
namespace {

std::vector<Metric> MetricsOf(const WorkerSnapshot& snapshot, const DataServer* data,
                              const ConnectionCounts& connections, const HttpCounts& pages) {
  const auto gauge = [](const char* name, const char* help, double value) {
    return Metric{name, help, Metric::Kind::kGauge, value, {}};
  };
  const auto counter = [](const char* name, const char* help, double value) {
    return Metric{name, help, Metric::Kind::kCounter, value, {}};
  };
  std::vector<Metric> metrics = {
      gauge("annulus_kv_bytes", "Bytes of KV held", static_cast<double>(snapshot.kv_bytes)),
      gauge("annulus_kv_bytes_limit", "Bytes of KV at most",
            static_cast<double>(snapshot.kv_bytes_limit)),
      gauge("annulus_table_bytes", "Bytes of contexts and layers beside their KV",
            static_cast<double>(snapshot.table_bytes)),
      gauge("annulus_worker_contexts", "Contexts with KV here",
            static_cast<double>(snapshot.contexts)),
      gauge("annulus_joined", "1 while the coordinator counts on this worker",
            snapshot.state == LinkState::kReady ? 1 : 0),
      counter("annulus_kv_evicted_bytes_total", "KV bytes that KV-efficient contexts let go of",
              static_cast<double>(snapshot.kv_bytes_evicted)),
      counter("annulus_tasks_total", "Tasks begun", static_cast<double>(snapshot.tasks)),
      QueueWait("tasks", snapshot.queue_wait),
      counter("annulus_kernel_seconds_total", "Time spent in the backend", snapshot.kernel_s),
      counter("annulus_steps_total", "Steps finished", static_cast<double>(snapshot.steps)),
      counter("annulus_attends_total", "Attends finished, well or not",
              static_cast<double>(snapshot.attends)),
      counter("annulus_appends_total", "Appends finished", static_cast<double>(snapshot.appends)),
      TransportBytes("ucx", "sent", snapshot.bytes_sent),
      TransportBytes("ucx", "received", snapshot.bytes_received),
      TransportBytes("grpc", "received", data == nullptr ? 0 : data->bytes_received()),
  };
  for (Metric& metric : MetricsOf(connections)) metrics.push_back(std::move(metric));
  metrics.push_back(gauge("annulus_uploads", "Uploads under way",
                          data == nullptr ? 0 : static_cast<double>(data->uploads())));
  if (data != nullptr) {
    for (const auto& [reason, count] : data->refusals().Read()) {
      metrics.push_back(CallsRefused(reason, count));
    }
  }
  if (snapshot.device_memory.has_value()) {
    const DeviceMemory& memory = *snapshot.device_memory;
    const auto add = [&](const char* name, const char* help, int64_t bytes) {
      metrics.push_back(gauge(name, help, static_cast<double>(bytes)));
      metrics.back().labels = {{"device", absl::StrCat(memory.device)}};
    };
    add("annulus_gpu_memory_bytes", "Memory of the GPU in use, by all processes", memory.bytes);
    add("annulus_gpu_memory_bytes_limit", "Memory of the GPU", memory.bytes_limit);
  }
  AddProcessMetrics(pages, &metrics);
  return metrics;
}

WorkerSnapshot SnapshotOf(const WorkerParts& parts) {
  const Worker* const worker = parts.worker.load();
  return worker == nullptr ? WorkerSnapshot() : worker->Snapshot();
}

}  // namespace

ProcessPages PagesOf(WorkerParts& parts, std::function<void(std::vector<Metric>*)> more) {
  ProcessPages pages;
  pages.live = [&parts]() -> absl::Status {
    DataServer* const data = parts.data.load();
    if (data != nullptr && !data->Answers(kPagePatience)) {
      return absl::UnavailableError("no uploads are accepted");
    }
    SnapshotOf(parts);  // its locks can be had
    return absl::OkStatus();
  };
  pages.ready = [&parts]() -> absl::Status {
    const LinkState state = SnapshotOf(parts).state;
    if (state == LinkState::kReady) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("it is ", Name(state)));
  };
  pages.metrics = [&parts, more = std::move(more)] {
    std::vector<Metric> metrics =
        MetricsOf(SnapshotOf(parts), parts.data.load(), parts.connections, parts.pages);
    more(&metrics);
    return MetricsPage(metrics);
  };
  pages.status = [&parts] {
    const WorkerSnapshot worker = SnapshotOf(parts);
    const std::vector<std::pair<std::string, std::string>> rows = {
        {"name", parts.name},
        {"id", absl::StrCat(worker.id)},
        {"state", std::string(Name(worker.state))},
        {"backend", worker.backend},
        {"KV", absl::StrCat(BytesText(worker.kv_bytes), " of ", BytesText(worker.kv_bytes_limit))},
        {"contexts", absl::StrCat(worker.contexts)},
        {"steps", absl::StrCat(worker.steps)},
        {"attends", absl::StrCat(worker.attends)},
        {"appends", absl::StrCat(worker.appends)}};
    return HtmlAnswer(StatusPage("Annulus worker", rows));
  };
  pages.status_json = [&parts] {
    const WorkerSnapshot worker = SnapshotOf(parts);
    const nlohmann::ordered_json json = {{"name", parts.name},
                                         {"id", worker.id},
                                         {"state", std::string(Name(worker.state))},
                                         {"backend", worker.backend},
                                         {"kv_bytes", worker.kv_bytes},
                                         {"kv_bytes_limit", worker.kv_bytes_limit},
                                         {"contexts", worker.contexts},
                                         {"steps", worker.steps},
                                         {"attends", worker.attends},
                                         {"appends", worker.appends}};
    return JsonAnswer(json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  };
  return pages;
}

}  // namespace annulus
