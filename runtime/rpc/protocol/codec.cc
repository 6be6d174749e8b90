#include "runtime/rpc/protocol/codec.h"

#include <grpcpp/support/status.h>
#include <algorithm>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/retry_hint.h"
#include "runtime/rpc/annulus.pb.h"

namespace annulus {
namespace {

// Below gRPC's limit for a trailer even if every byte is escaped to three.
constexpr size_t kMessageBytesMax = 2000;

std::string Text(absl::string_view name) {
  return std::string(name.data(), name.size());
}

// Puts the field's name before what a text parser says.
template <typename T>
absl::StatusOr<T> Named(absl::string_view field, absl::StatusOr<T> parsed) {
  if (parsed.ok()) return parsed;
  return absl::Status(parsed.status().code(), absl::StrCat(field, ": ", parsed.status().message()));
}

void ToProto(const WorkerStatus& worker, v1::WorkerStatus* message) {
  message->set_id(worker.id);
  message->set_state(worker.state);
  message->set_backend(worker.backend);
  message->set_address(worker.address);
  message->set_kv_bytes(worker.kv_bytes);
  message->set_kv_bytes_limit(worker.kv_bytes_limit);
  message->set_data_address(worker.data_address);
  message->set_heartbeat_age_s(worker.heartbeat_age_s);
}

void ToProto(const AttendStats& stats, v1::AttendStats* message) {
  message->set_plan(stats.plan);
  message->set_visited_pairs(stats.visited_pairs);
  message->set_work_pairs(stats.work_pairs);
  message->set_bytes_moved(stats.bytes_moved);
  message->set_planned_bytes(stats.planned_bytes);
  message->set_elapsed_s(stats.elapsed_s);
  for (const WorkerShare& share : stats.workers) {
    v1::WorkerShare* to = message->add_workers();
    to->set_worker(share.worker);
    to->set_work_pairs(share.work_pairs);
    to->set_bytes_sent(share.bytes_sent);
    to->set_bytes_received(share.bytes_received);
  }
}

AttendStats FromProto(const v1::AttendStats& message) {
  AttendStats stats{.plan = message.plan(),
                    .visited_pairs = message.visited_pairs(),
                    .work_pairs = message.work_pairs(),
                    .bytes_moved = message.bytes_moved(),
                    .planned_bytes = message.planned_bytes(),
                    .elapsed_s = message.elapsed_s(),
                    .workers = {}};
  for (const v1::WorkerShare& share : message.workers()) {
    stats.workers.push_back(
        {share.worker(), share.work_pairs(), share.bytes_sent(), share.bytes_received()});
  }
  return stats;
}

absl::Status CheckExtent(absl::string_view field, absl::string_view extent, int64_t value) {
  if (value >= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ".", extent, ": ", value, "; expected 1 or more"));
}

std::string CutMessage(const absl::Status& status) {
  std::string message = Text(status.message());
  if (message.size() > kMessageBytesMax) {
    message.resize(kMessageBytesMax);
    message += " ...";
  }
  return message;
}

void ToProto(const absl::Status& status, v1::ErrorDetails* message) {
  const absl::optional<absl::Duration> wait = RetryAfter(status);
  if (wait.has_value()) message->set_retry_after_ms(absl::ToInt64Milliseconds(*wait));
}

absl::Status FromProto(const v1::ErrorDetails& message, absl::Status status) {
  if (message.retry_after_ms() < 1) return status;
  return WithRetryAfter(std::move(status), absl::Milliseconds(message.retry_after_ms()));
}

}  // namespace

void ToProto(const ContextSpec& spec, v1::ContextSpec* message) {
  message->set_layers(spec.layers);
  message->set_heads(spec.heads);
  message->set_kv_heads(spec.kv_heads);
  message->set_head_dim(spec.head_dim);
  message->set_v_head_dim(spec.v_head_dim);
  message->set_v_is_k_prefix(spec.v_is_k_prefix);
  message->set_dtype(Text(Name(spec.dtype)));
  message->set_placement(Text(Name(spec.placement)));
  message->set_partition(spec.partition.ToString());
  message->set_tokens_expected(spec.tokens_expected);
  for (const std::string& pattern : spec.patterns) message->add_patterns(pattern);
  message->set_kv_efficient(spec.kv_efficient);
  message->set_replicas(spec.replicas);
  message->set_lease(spec.lease);
  message->set_evictable(spec.evictable);
}

absl::StatusOr<ContextSpec> FromProto(const v1::ContextSpec& message) {
  ContextSpec spec;
  spec.layers = message.layers();
  spec.heads = message.heads();
  spec.kv_heads = message.kv_heads();
  spec.head_dim = message.head_dim();
  spec.v_head_dim = message.v_head_dim();
  spec.v_is_k_prefix = message.v_is_k_prefix();
  ANNULUS_ASSIGN_OR_RETURN(spec.dtype, Named("spec.dtype", ParseDType(message.dtype())));
  ANNULUS_ASSIGN_OR_RETURN(spec.placement,
                           Named("spec.placement", ParsePlacement(message.placement())));
  ANNULUS_ASSIGN_OR_RETURN(spec.partition,
                           Named("spec.partition", PartitionSpec::Parse(message.partition())));
  spec.tokens_expected = message.tokens_expected();
  spec.patterns.assign(message.patterns().begin(), message.patterns().end());
  spec.kv_efficient = message.kv_efficient();
  spec.replicas = message.replicas() == 0 ? 1 : message.replicas();
  if (message.has_lease()) spec.lease = message.lease();
  spec.evictable = message.evictable();
  return spec;
}

void ToProto(const ContextInfo& info, v1::ContextInfo* message) {
  message->set_context(info.id);
  message->set_epoch(info.epoch);
  ToProto(info.spec, message->mutable_spec());
  message->mutable_tokens()->Assign(info.tokens.begin(), info.tokens.end());
  message->set_kv_bytes(info.kv_bytes);
  message->set_dense_kv_bytes(info.dense_kv_bytes);
  message->set_state(info.state);
  message->set_idle_s(info.idle_s);
}

absl::StatusOr<ContextInfo> FromProto(const v1::ContextInfo& message) {
  ContextInfo info;
  info.id = message.context();
  info.epoch = message.epoch();
  ANNULUS_ASSIGN_OR_RETURN(info.spec, FromProto(message.spec()));
  info.tokens.assign(message.tokens().begin(), message.tokens().end());
  info.kv_bytes = message.kv_bytes();
  info.dense_kv_bytes = message.dense_kv_bytes();
  info.state = message.state();
  info.idle_s = message.idle_s();
  return info;
}

void ToProto(const std::vector<ContextInfo>& contexts, v1::ContextList* message) {
  for (const ContextInfo& context : contexts) ToProto(context, message->add_contexts());
}

absl::StatusOr<std::vector<ContextInfo>> FromProto(const v1::ContextList& message) {
  std::vector<ContextInfo> contexts;
  for (const v1::ContextInfo& context : message.contexts()) {
    ANNULUS_ASSIGN_OR_RETURN(ContextInfo info, FromProto(context));
    contexts.push_back(std::move(info));
  }
  return contexts;
}

void ToProto(const RequestKey& key, v1::RequestKey* message) {
  message->set_client(key.client);
  message->set_sequence(key.sequence);
}

RequestKey FromProto(const v1::RequestKey& message) {
  return {.client = message.client(), .sequence = message.sequence()};
}

void ToProto(const AppendGrant& grant, v1::AppendGrant* message) {
  message->set_id(grant.id);
  message->set_secret(grant.secret);
  ToProto(grant.spec, message->mutable_spec());
  message->set_world(grant.world);
  for (const std::string& address : grant.addresses) message->add_addresses(address);
  for (const int rank : grant.ranks) message->add_ranks(rank);
}

absl::StatusOr<AppendGrant> FromProto(const v1::AppendGrant& message) {
  AppendGrant grant{message.id(),
                    message.secret(),
                    {},
                    message.world(),
                    {message.addresses().begin(), message.addresses().end()},
                    {message.ranks().begin(), message.ranks().end()}};
  ANNULUS_ASSIGN_OR_RETURN(grant.spec, FromProto(message.spec()));
  const bool ranks_exist = std::all_of(grant.ranks.begin(), grant.ranks.end(),
                                       [&](int rank) { return rank >= 0 && rank < grant.world; });
  if (grant.ranks.size() != grant.addresses.size() || !ranks_exist) {
    return absl::InternalError("the service granted an upload to ranks that do not exist");
  }
  return grant;
}

void ToProto(const ClusterStatus& status, v1::ClusterStatus* message) {
  message->set_epoch(status.epoch);
  for (const ContextInfo& context : status.contexts) ToProto(context, message->add_contexts());
  for (const WorkerStatus& worker : status.workers) ToProto(worker, message->add_workers());
  message->set_in_flight(status.in_flight);
  message->set_in_flight_bytes(status.in_flight_bytes);
  message->set_contexts_expired(status.contexts_expired);
  message->set_contexts_evicted(status.contexts_evicted);
}

absl::StatusOr<ClusterStatus> FromProto(const v1::ClusterStatus& message) {
  ClusterStatus status;
  status.epoch = message.epoch();
  for (const v1::ContextInfo& context : message.contexts()) {
    ANNULUS_ASSIGN_OR_RETURN(ContextInfo info, FromProto(context));
    status.contexts.push_back(std::move(info));
  }
  for (const v1::WorkerStatus& worker : message.workers()) {
    status.workers.push_back({worker.id(), worker.state(), worker.backend(), worker.address(),
                              worker.kv_bytes(), worker.kv_bytes_limit(), worker.data_address(),
                              worker.heartbeat_age_s()});
  }
  status.in_flight = message.in_flight();
  status.in_flight_bytes = message.in_flight_bytes();
  status.contexts_expired = message.contexts_expired();
  status.contexts_evicted = message.contexts_evicted();
  return status;
}

void ToProto(absl::Span<const absl::Status> renewed, v1::KeepAliveReply* message) {
  for (size_t i = 0; i < renewed.size(); ++i) {
    if (renewed[i].ok()) continue;
    v1::NotRenewed* failure = message->add_failures();
    failure->set_index(static_cast<int>(i));
    ToProto(renewed[i], failure->mutable_failure());
  }
}

std::vector<absl::Status> FromProto(const v1::KeepAliveReply& message, size_t contexts) {
  std::vector<absl::Status> renewed(contexts);
  for (const v1::NotRenewed& failure : message.failures()) {
    const auto index = static_cast<size_t>(failure.index());
    if (index < contexts) renewed[index] = FromProto(failure.failure());
  }
  return renewed;
}

void ToProto(const AttendResult& result, v1::AttendReplyHeader* message) {
  message->set_epoch(result.epoch);
  ToProto(result.out.view(), message->mutable_out());
  ToProto(result.lse.view(), message->mutable_lse());
  ToProto(result.stats, message->mutable_stats());
  for (const TraceSpan& span : result.trace) {
    v1::TraceSpan* to = message->add_trace();
    to->set_process(span.process);
    to->set_name(span.name);
    to->set_begin_ns(span.begin_ns);
    to->set_end_ns(span.end_ns);
  }
}

AttendResult FromProto(const v1::AttendReplyHeader& message) {
  AttendResult result;
  result.epoch = message.epoch();
  result.stats = FromProto(message.stats());
  for (const v1::TraceSpan& span : message.trace()) {
    result.trace.push_back({span.process(), span.name(), span.begin_ns(), span.end_ns()});
  }
  return result;
}

void ToProto(const TensorView& view, v1::TensorShape* message) {
  message->set_dtype(Text(Name(view.dtype)));
  message->set_tokens(view.tokens);
  message->set_heads(view.heads);
  message->set_dim(view.dim);
}

absl::StatusOr<TensorShape> FromProto(const v1::TensorShape& message, absl::string_view field) {
  const absl::StatusOr<DType> dtype = ParseDType(message.dtype());
  if (!dtype.ok()) return Named(absl::StrCat(field, ".dtype"), dtype).status();
  return CheckedShape(*dtype, message.tokens(), message.heads(), message.dim(), field);
}

absl::StatusOr<TensorShape> CheckedShape(DType dtype, int64_t tokens, int64_t heads, int64_t dim,
                                         absl::string_view field) {
  TensorShape shape{dtype, tokens, heads, dim};
  if (!IsKnown(dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".dtype: ", static_cast<int>(dtype), "; expected f32, f16 or bf16"));
  }
  ANNULUS_RETURN_IF_ERROR(CheckExtent(field, "tokens", shape.tokens));
  ANNULUS_RETURN_IF_ERROR(CheckExtent(field, "heads", shape.heads));
  ANNULUS_RETURN_IF_ERROR(CheckExtent(field, "dim", shape.dim));
  int64_t bytes = static_cast<int64_t>(SizeOf(shape.dtype));
  if (__builtin_mul_overflow(bytes, shape.dim, &bytes) ||
      __builtin_mul_overflow(bytes, shape.heads, &bytes) ||
      __builtin_mul_overflow(bytes, shape.tokens, &bytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": [", shape.tokens, ", ", shape.heads, ", ", shape.dim, "] of ",
                     Text(Name(shape.dtype)), "; expected a size below 2^63 bytes"));
  }
  shape.bytes = bytes;
  return shape;
}

absl::Status CheckPosition(absl::string_view field, int64_t value) {
  constexpr int64_t kPositionMax = int64_t{1} << 48;
  if (value >= 0 && value <= kPositionMax) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", value, "; expected 0 to ", kPositionMax));
}

absl::Status CheckAnswer(const TensorShape& out, const TensorShape& lse, int64_t q_tokens,
                         int64_t heads) {
  constexpr int64_t kDimMax = 4096;
  const auto check = [&](const TensorShape& shape, absl::string_view field, int64_t dim_max) {
    if (shape.dtype == DType::kF32 && shape.tokens == q_tokens && shape.heads == heads &&
        shape.dim <= dim_max) {
      return absl::OkStatus();
    }
    return absl::InternalError(absl::StrCat("the reply's ", field, " is [", shape.tokens, ", ",
                                            shape.heads, ", ", shape.dim, "]; expected [", q_tokens,
                                            ", ", heads, ", 1 to ", dim_max, "] of f32"));
  };
  ANNULUS_RETURN_IF_ERROR(check(out, "out", kDimMax));
  return check(lse, "lse", 1);
}

void ToProto(const absl::Status& status, v1::StepFailure* message) {
  message->set_code(static_cast<int>(status.code()));
  message->set_message(CutMessage(status));
  ToProto(status, message->mutable_details());
}

absl::Status FromProto(const v1::StepFailure& message) {
  // A code of 0 would turn a failure into an answer.
  const int code =
      message.code() == 0 ? static_cast<int>(absl::StatusCode::kInternal) : message.code();
  return FromProto(message.details(),
                   absl::Status(static_cast<absl::StatusCode>(code), message.message()));
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  v1::ErrorDetails details;
  ToProto(status, &details);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), CutMessage(status),
                      details.SerializeAsString());
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  v1::ErrorDetails details;
  // Another server on the way may have put something else there, which is no hint of ours.
  if (!details.ParseFromString(status.error_details())) details.Clear();
  return FromProto(details, absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                                         status.error_message()));
}

}  // namespace annulus
