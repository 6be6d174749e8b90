// The fields of the service's values (types.h), as annulus.proto has them, and of what both
// protocols share. Pure functions.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "annulus/types.h"
#include "runtime/fields/field.h"
#include "runtime/limits.h"

namespace annulus {

template <>
struct TextForm<DType> {
  static std::string Write(DType dtype) { return std::string(Name(dtype)); }
  static std::optional<DType> Parse(absl::string_view text);
  static bool Known(DType dtype) { return IsKnown(dtype); }
  static std::string Expected() { return "f32, f16 or bf16"; }
};

template <>
struct TextForm<Placement> {
  static std::string Write(Placement placement) { return std::string(Name(placement)); }
  static std::optional<Placement> Parse(absl::string_view text);
  static bool Known(Placement placement) { return Parse(Name(placement)).has_value(); }
  static std::string Expected() { return "tokens, heads or mesh"; }
};

template <>
struct TextForm<PlanKind> {
  static std::string Write(PlanKind kind) { return std::string(Name(kind)); }
  static std::optional<PlanKind> Parse(absl::string_view text);
  static bool Known(PlanKind kind) { return Parse(Name(kind)).has_value(); }
  static std::string Expected();
};

template <>
struct TextForm<PartitionSpec> {
  static std::string Write(const PartitionSpec& partition) { return partition.ToString(); }
  static std::optional<PartitionSpec> Parse(absl::string_view text);
  static bool Known(const PartitionSpec& partition) { return true; }  // CheckWhole says more
  static std::string Expected();
};

constexpr auto DescriptionOf(const Track*) {
  using T = Track;
  return Describe(
      "Track", Field(1, "name", &T::name, SizeBetween(1, kTrackNameBytesMax)),
      Field(2, "dim", &T::dim, MultipleOf(8, kHeadDimMax)), Field(3, "dtype", &T::dtype),
      Field(4, "heads", &T::heads, Bounds{.min = 1, .max = kKvHeadsMax, .absent = 1}),
      Field(5, "ratio", &T::ratio, Bounds{.min = 1, .max = kTrackRatioMax, .absent = 1}));
}

constexpr auto DescriptionOf(const ContextSpec*) {
  using T = ContextSpec;
  return Describe(
      "ContextSpec", Field(1, "layers", &T::layers, Between(1, kLayersMax)),
      Field(3, "kv_heads", &T::kv_heads, Between(1, kKvHeadsMax)),
      Field(2, "heads", &T::heads, Between(1, kHeadsMax)),
      Field(4, "head_dim", &T::head_dim, MultipleOf(8, kHeadDimMax)),
      Field(5, "v_head_dim", &T::v_head_dim, MultipleOf(8, kHeadDimMax)),
      Field(6, "v_is_k_prefix", &T::v_is_k_prefix), Field(7, "dtype", &T::dtype),
      Field(8, "placement", &T::placement), Field(9, "partition", &T::partition),
      Field(10, "tokens_expected", &T::tokens_expected, Between(0, kContextTokensMax)),
      Field(11, "patterns", &T::patterns, SizeAtMost(kLayersMax)),
      Field(12, "kv_efficient", &T::kv_efficient),
      Field(13, "replicas", &T::replicas, Bounds{.min = 1, .max = kReplicasMax, .absent = 1}),
      Field(14, "lease", &T::lease, Bounds{.min = 0, .max = kLeaseMaxS, .absent = kLeaseDefaultS}),
      Field(15, "evictable", &T::evictable),
      Field(16, "owner", &T::owner, SizeAtMost(kTenantBytesMax)),
      Field(17, "tracks", &T::tracks, SizeAtMost(kTracksMax)));
}
absl::Status CheckWhole(const ContextSpec& spec);

constexpr auto DescriptionOf(const RequestKey*) {
  using T = RequestKey;
  return Describe("RequestKey", Field(1, "client", &T::client), Field(2, "sequence", &T::sequence));
}

constexpr auto DescriptionOf(const ContextInfo*) {
  using T = ContextInfo;
  return Describe("ContextInfo", Field(1, "context", &T::id), Field(2, "epoch", &T::epoch),
                  Field(3, "spec", &T::spec), Field(4, "tokens", &T::tokens, AtLeast(0)),
                  Field(5, "kv_bytes", &T::kv_bytes), Field(6, "state", &T::state),
                  Field(7, "dense_kv_bytes", &T::dense_kv_bytes), Field(8, "idle_s", &T::idle_s));
}

constexpr auto DescriptionOf(const WorkerShare*) {
  using T = WorkerShare;
  return Describe("WorkerShare", Field(1, "worker", &T::worker),
                  Field(2, "work_pairs", &T::work_pairs), Field(3, "bytes_sent", &T::bytes_sent),
                  Field(4, "bytes_received", &T::bytes_received));
}

constexpr auto DescriptionOf(const AttendStats*) {
  using T = AttendStats;
  return Describe("AttendStats", Field(1, "plan", &T::plan),
                  Field(2, "visited_pairs", &T::visited_pairs),
                  Field(3, "work_pairs", &T::work_pairs), Field(4, "bytes_moved", &T::bytes_moved),
                  Field(5, "planned_bytes", &T::planned_bytes),
                  Field(6, "elapsed_s", &T::elapsed_s), Field(7, "workers", &T::workers));
}

constexpr auto DescriptionOf(const TraceSpan*) {
  using T = TraceSpan;
  return Describe("TraceSpan", Field(1, "process", &T::process), Field(2, "name", &T::name),
                  Field(3, "begin_ns", &T::begin_ns), Field(4, "end_ns", &T::end_ns));
}

constexpr auto DescriptionOf(const WorkerStatus*) {
  using T = WorkerStatus;
  return Describe("WorkerStatus", Field(1, "id", &T::id), Field(2, "state", &T::state),
                  Field(3, "backend", &T::backend), Field(4, "address", &T::address),
                  Field(5, "kv_bytes", &T::kv_bytes),
                  Field(6, "kv_bytes_limit", &T::kv_bytes_limit),
                  Field(7, "data_address", &T::data_address),
                  Field(8, "heartbeat_age_s", &T::heartbeat_age_s), Field(9, "name", &T::name));
}

constexpr auto DescriptionOf(const TenantStatus*) {
  using T = TenantStatus;
  return Describe("TenantStatus", Field(1, "tenant", &T::tenant),
                  Field(2, "contexts", &T::contexts), Field(3, "kv_bytes", &T::kv_bytes),
                  Field(4, "in_flight", &T::in_flight),
                  Field(5, "in_flight_bytes", &T::in_flight_bytes));
}

constexpr auto DescriptionOf(const ClusterStatus*) {
  using T = ClusterStatus;
  return Describe("ClusterStatus", Field(1, "epoch", &T::epoch), Field(2, "contexts", &T::contexts),
                  Field(3, "workers", &T::workers), Field(4, "in_flight", &T::in_flight),
                  Field(5, "in_flight_bytes", &T::in_flight_bytes),
                  Field(6, "contexts_expired", &T::contexts_expired),
                  Field(7, "contexts_evicted", &T::contexts_evicted),
                  Field(8, "tenants", &T::tenants),
                  Field(9, "contexts_left_out", &T::contexts_left_out, AtLeast(0)));
}

}  // namespace annulus
