// Codec: the service's values to and from their messages (annulus.proto), and statuses to and from
// gRPC's. Shared by server and client. Reading is defensive: a message comes from anybody, so every
// FromProto refuses what has no meaning with INVALID_ARGUMENT, naming the field, its value and what
// was expected. What a field means for the service (limits, known contexts) is the Service's to
// judge. Pure functions, thread-safe. No protobuf header is needed to include this one.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/types.h"

namespace grpc {
class Status;
}  // namespace grpc

namespace annulus {
namespace v1 {
class AttendReplyHeader;
class ClusterStatus;
class ContextInfo;
class ContextSpec;
class TensorShape;
}  // namespace v1

void ToProto(const ContextSpec& spec, v1::ContextSpec* message);
absl::StatusOr<ContextSpec> FromProto(const v1::ContextSpec& message);

void ToProto(const ContextInfo& info, v1::ContextInfo* message);
absl::StatusOr<ContextInfo> FromProto(const v1::ContextInfo& message);

void ToProto(const ClusterStatus& status, v1::ClusterStatus* message);
absl::StatusOr<ClusterStatus> FromProto(const v1::ClusterStatus& message);

// All of a result but its tensors' bytes.
void ToProto(const AttendResult& result, v1::AttendReplyHeader* message);

// Epoch, stats and trace of a result; its tensors are left empty.
AttendResult FromProto(const v1::AttendReplyHeader& message);

// A tensor as a message declares it. Every extent is ≥ 1 and `bytes` does not overflow.
struct TensorShape {
  DType dtype = DType::kF32;
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t dim = 0;
  int64_t bytes = 0;

  int64_t row_bytes() const { return bytes / tokens; }  // of one token
  TensorView View(const std::byte* data) const {
    return TensorView::Contiguous(data, dtype, tokens, heads, dim);
  }
};

void ToProto(const TensorView& view, v1::TensorShape* message);
// `field` names the tensor in errors ("q").
absl::StatusOr<TensorShape> FromProto(const v1::TensorShape& message, absl::string_view field);

// The codes are the same numbers. A message to gRPC is cut to fit a trailer (8 KiB in all).
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace annulus
