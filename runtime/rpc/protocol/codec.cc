#include "runtime/rpc/protocol/codec.h"

#include <grpcpp/support/status.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
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
      absl::StrCat(field, ".", extent, " is ", value, "; expected 1 or more"));
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
  return spec;
}

void ToProto(const ContextInfo& info, v1::ContextInfo* message) {
  message->set_context(info.id);
  message->set_epoch(info.epoch);
  ToProto(info.spec, message->mutable_spec());
  message->mutable_tokens()->Assign(info.tokens.begin(), info.tokens.end());
  message->set_kv_bytes(info.kv_bytes);
  message->set_state(info.state);
}

absl::StatusOr<ContextInfo> FromProto(const v1::ContextInfo& message) {
  ContextInfo info;
  info.id = message.context();
  info.epoch = message.epoch();
  ANNULUS_ASSIGN_OR_RETURN(info.spec, FromProto(message.spec()));
  info.tokens.assign(message.tokens().begin(), message.tokens().end());
  info.kv_bytes = message.kv_bytes();
  info.state = message.state();
  return info;
}

void ToProto(const ClusterStatus& status, v1::ClusterStatus* message) {
  message->set_epoch(status.epoch);
  for (const ContextInfo& context : status.contexts) ToProto(context, message->add_contexts());
  for (const WorkerStatus& worker : status.workers) ToProto(worker, message->add_workers());
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
                              worker.kv_bytes(), worker.kv_bytes_limit()});
  }
  return status;
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
  TensorShape shape;
  ANNULUS_ASSIGN_OR_RETURN(shape.dtype,
                           Named(absl::StrCat(field, ".dtype"), ParseDType(message.dtype())));
  shape.tokens = message.tokens();
  shape.heads = message.heads();
  shape.dim = message.dim();
  ANNULUS_RETURN_IF_ERROR(CheckExtent(field, "tokens", shape.tokens));
  ANNULUS_RETURN_IF_ERROR(CheckExtent(field, "heads", shape.heads));
  ANNULUS_RETURN_IF_ERROR(CheckExtent(field, "dim", shape.dim));
  int64_t bytes = static_cast<int64_t>(SizeOf(shape.dtype));
  if (__builtin_mul_overflow(bytes, shape.dim, &bytes) ||
      __builtin_mul_overflow(bytes, shape.heads, &bytes) ||
      __builtin_mul_overflow(bytes, shape.tokens, &bytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is [", shape.tokens, ", ", shape.heads, ", ", shape.dim, "] of ",
                     Text(Name(shape.dtype)), "; expected a size below 2^63 bytes"));
  }
  shape.bytes = bytes;
  return shape;
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  std::string message = Text(status.message());
  if (message.size() > kMessageBytesMax) {
    message.resize(kMessageBytesMax);
    message += " ...";
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message);
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace annulus
