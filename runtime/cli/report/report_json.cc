#include <nlohmann/json.hpp>

#include "runtime/cli/report/report.h"

namespace annulus {
namespace {

using Json = nlohmann::ordered_json;

// Text that is not UTF-8 is replaced: a line of JSON must be one that every reader takes.
std::string Line(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string Text(absl::string_view text) {
  return std::string(text);
}

double Density(int64_t visited_pairs, int64_t heads, int64_t tokens, int64_t kv_tokens) {
  return static_cast<double>(visited_pairs) /
         (static_cast<double>(heads) * static_cast<double>(tokens) *
          static_cast<double>(kv_tokens));
}

Json ToObject(const Machines& machines) {
  const ClusterModel& model = machines.model;
  return {{"source", machines.source},
          {"workers_per_node", model.workers_per_node},
          {"flops", model.flops},
          {"flops_f32", model.flops_f32},
          {"read_bytes_per_s", model.read_bytes_per_s},
          {"launch_s", model.launch_s},
          {"inside_bytes_per_s", model.inside_bytes_per_s},
          {"inside_latency_s", model.inside_latency_s},
          {"between_bytes_per_s", model.between_bytes_per_s},
          {"between_latency_s", model.between_latency_s}};
}

Json TermsOf(const PlanCost& cost) {
  return {{"cost_s", cost.cost_s},
          {"compute_s", cost.compute_s},
          {"comm_s", cost.comm_s},
          {"latency_s", cost.latency_s},
          {"exposed_comm_s", cost.exposed_comm_s},
          {"merge_s", cost.merge_s}};
}

Json ToObject(const MeasuredPlan& measured) {
  return {{"elapsed_s", measured.elapsed_s},
          {"compute_s", measured.compute_s},
          {"exposed_comm_s", measured.exposed_comm_s},
          {"bytes_moved", measured.bytes_moved}};
}

Json ToObject(const ContextInfo& context) {
  Json tracks = Json::array();
  for (const Track& track : context.spec.tracks) tracks.push_back(Text(track.name));
  return {{"id", context.id},
          {"state", context.state},
          {"epoch", context.epoch},
          {"layers", context.spec.layers},
          {"tracks", std::move(tracks)},
          {"tokens", TokensOf(context)},
          {"kv_bytes", context.kv_bytes},
          {"dense_kv_bytes", context.dense_kv_bytes},
          {"lease", context.spec.lease},
          {"evictable", context.spec.evictable},
          {"owner", context.spec.owner},
          {"idle_s", context.idle_s}};
}

// A head's list is KV-efficient where what one row of it does not see no later one does.
Json ToObject(const NamedList& list) {
  const KeyListData& data = list.list->data();
  int efficient = 0;
  for (int head = 0; head < data.heads; ++head) efficient += list.list->kv_efficient(head) ? 1 : 0;
  return {{"name", list.name},
          {"unit", Text(Name(data.unit))},
          {"rows", Text(Name(data.rows))},
          {"block_tokens", data.block_tokens},
          {"heads", data.heads},
          {"keys", data.keys.size()},
          {"kv_efficient", efficient == data.heads},
          {"kv_efficient_heads", efficient}};
}

Json ToObject(const ClusterStatus& status) {
  Json workers = Json::array();
  for (const WorkerStatus& worker : status.workers) {
    workers.push_back({{"id", worker.id},
                       {"state", worker.state},
                       {"backend", worker.backend},
                       {"address", worker.address},
                       {"kv_bytes", worker.kv_bytes},
                       {"kv_bytes_limit", worker.kv_bytes_limit},
                       {"data_address", worker.data_address},
                       {"heartbeat_age_s", worker.heartbeat_age_s},
                       {"name", worker.name}});
  }
  Json contexts = Json::array();
  for (const ContextInfo& context : status.contexts) contexts.push_back(ToObject(context));
  return {{"epoch", status.epoch},
          {"contexts", ContextsOf(status)},
          {"in_flight", status.in_flight},
          {"in_flight_bytes", status.in_flight_bytes},
          {"contexts_expired", status.contexts_expired},
          {"contexts_evicted", status.contexts_evicted},
          {"context_list", std::move(contexts)},
          {"contexts_left_out", status.contexts_left_out},
          {"workers", std::move(workers)}};
}

Json Range(TokenRange range) {
  return Json::array({range.begin, range.end});
}

}  // namespace

std::string ToJson(const AttendReport& report) {
  Json json = Json::object(
      {{"plan", report.plan},
       {"pattern", report.pattern},
       {"tokens", report.tokens},
       {"q_start", report.q_start},
       {"kv_tokens", report.kv_tokens},
       {"keys", Range(report.keys)},
       {"heads", report.heads},
       {"kv_heads", report.kv_heads},
       {"head_dim", report.head_dim},
       {"v_head_dim", report.v_head_dim},
       {"dtype", Text(Name(report.dtype))},
       {"backend", report.backend},
       {"workers", report.workers},
       {"visited_pairs", report.visited_pairs},
       {"density", Density(report.visited_pairs, report.heads, report.tokens, report.kv_tokens)},
       {"elapsed_s", report.elapsed_s},
       {"bytes_moved", report.bytes_moved},
       {"planned_bytes", report.planned_bytes}});
  if (report.times.has_value()) {
    json["stages"] = report.times->predicted.stages;
    json["compute_s"] = report.times->compute_s;
    json["exposed_comm_s"] = report.times->exposed_comm_s;
    json["predicted"] = TermsOf(report.times->predicted);
    json["calibration"] = ToObject(report.times->machines);
  }
  return Line(json);
}

std::string ToJson(const ExplainReport& report) {
  const Problem& problem = report.problem;
  const PlanKind chosen = report.decision.plan.kind();
  Json workers = Json::array();
  Json candidates = Json::array();
  Json lists = Json::array();
  for (const NamedList& list : problem.pattern.lists()) {
    if (!report.is_stand_in(list.name)) lists.push_back(ToObject(list));
  }
  double imbalance = 1;
  for (size_t i = 0; i < report.decision.candidates.size(); ++i) {
    const PlanCost& cost = report.decision.candidates[i];
    Json candidate = {{"plan", Text(Name(cost.kind))}, {"stages", cost.stages}};
    candidate.update(TermsOf(cost));
    candidate.update(Json{{"bytes_total", cost.bytes_total},
                          {"bytes_between", cost.bytes_between},
                          {"imbalance", cost.imbalance},
                          {"chosen", cost.kind == chosen}});
    if (!report.measured.empty()) candidate["measured"] = ToObject(report.measured[i]);
    candidates.push_back(std::move(candidate));
    if (cost.kind != chosen) continue;
    imbalance = cost.imbalance;
    for (const WorkerLoad& load : cost.workers) {
      workers.push_back({{"worker", load.worker},
                         {"work_pairs", load.work_pairs},
                         {"kv_tokens", load.kv_tokens},
                         {"bytes_sent", load.bytes_sent},
                         {"bytes_received", load.bytes_received}});
    }
  }
  return Line({{"plan", Text(Name(chosen))},
               {"pattern", problem.pattern.text()},
               {"tokens", problem.q_tokens},
               {"q_start", problem.q_range().begin},
               {"kv_tokens", problem.kv_tokens},
               {"keys", Range(problem.keys())},
               {"heads", problem.heads},
               {"kv_heads", problem.kv_heads},
               {"head_dim", problem.head_dim},
               {"v_head_dim", problem.v_head_dim},
               {"dtype", Text(Name(problem.dtype))},
               {"placement", problem.home_partition.ToString()},
               {"visited_pairs", report.size.visited_pairs},
               {"work_pairs", report.size.work_pairs},
               {"density", report.size.density},
               {"imbalance", imbalance},
               {"bytes_total", report.decision.plan.BytesTotal()},
               {"stages", report.decision.plan.stages()},
               {"calibration", ToObject(report.machines)},
               {"coverage", report.coverage.covered},
               {"coverage_last", report.coverage_last},
               {"kept_kv", report.coverage.kept_kv},
               {"lists", std::move(lists)},
               {"stand_ins", report.stand_ins},
               {"workers", std::move(workers)},
               {"candidates", std::move(candidates)}});
}

std::string ToJson(const ContextInfo& context) {
  return Line(ToObject(context));
}

std::string ToJson(const ClusterStatus& status) {
  return Line(ToObject(status));
}

std::string ToJson(const ClusterStatus& status, const ClusterView& view) {
  Json json = ToObject(status);
  json["workers_joined"] = view.workers_joined;
  json["workers_left"] = view.workers_left;
  json["workers_lost"] = view.workers_lost;
  json["moves"] = {{"running", view.moving ? 1 : 0},
                   {"done", view.moves_done},
                   {"failed", view.moves_failed},
                   {"bytes", view.moved_bytes}};
  json["contexts_recovering"] = view.contexts_recovering;
  json["recovery_s"] = absl::ToDoubleSeconds(view.recovery_time);
  Json map = Json::array();
  for (const ContextPlaces& places : view.places) {
    Json holders = Json::array();
    for (const auto& [worker, bytes] : places.kv_bytes) {
      holders.push_back({{"worker", worker}, {"kv_bytes", bytes}});
    }
    map.push_back(
        {{"context", places.context}, {"holders", std::move(holders)}, {"parts", places.parts}});
  }
  json["block_map"] = std::move(map);
  return Line(json);
}

std::string ToJson(const UpReport& report) {
  return Line({{"endpoint", report.endpoint},
               {"coordinator_pid", report.coordinator_pid},
               {"worker_pids", report.worker_pids}});
}

std::string ToJson(const VersionReport& report) {
  return Line({{"version", report.version},
               {"build_type", report.build_type},
               {"simd", report.simd},
               {"transports", report.transports},
               {"cuda", report.cuda},
               {"gpu", report.gpu}});
}

}  // namespace annulus
