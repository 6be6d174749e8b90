// Codec: the service's values to and from their messages (annulus.proto), and statuses to and from
// gRPC's. Shared by server and client. Reading is defensive: a message comes from anybody, so every
// FromProto refuses what has no meaning with INVALID_ARGUMENT, naming the field, its value and what
// was expected. What a field means for the service (known contexts, what is committed) is the
// Service's to judge. Which value is which message's fields say the descriptions in
// runtime/service/calls.h. Pure functions, thread-safe. No protobuf header is needed to include
// this one.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "annulus/types.h"
#include "runtime/fields/read.h"
#include "runtime/fields/write.h"
#include "runtime/service/calls.h"

namespace google::protobuf {
class MessageLite;
}  // namespace google::protobuf

namespace grpc {
class Status;
}  // namespace grpc

namespace annulus {
namespace v1 {
class StepFailure;
class TensorShape;
}  // namespace v1

// A message's encoding, and a message from one. INTERNAL: a text of it is not UTF-8.
std::string EncodingOf(const google::protobuf::MessageLite& message);
absl::Status ParseEncoding(const std::string& bytes, google::protobuf::MessageLite* message);

// Replaces all of the message. Of an Attend and its reply: all but the tensors.
template <Described T>
absl::Status ToProto(const T& value, google::protobuf::MessageLite* message) {
  return ParseEncoding(BytesOf(value), message);
}

template <Described T>
absl::StatusOr<T> FromProto(const google::protobuf::MessageLite& message) {
  return ValueOf<T>(EncodingOf(message), "");
}

// Client: what the service answered; INTERNAL, since it is the server that is wrong.
template <Described T>
absl::StatusOr<T> ReplyOf(const std::string& encoding) {
  absl::StatusOr<T> value = ValueOf<T>(encoding, "");
  if (value.ok()) return value;
  return absl::InternalError(absl::StrCat("the reply is malformed: ", value.status().message()));
}

template <Described T>
absl::StatusOr<T> ReplyOf(const google::protobuf::MessageLite& message) {
  return ReplyOf<T>(EncodingOf(message));
}

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

// INVALID_ARGUMENT names `field` for what no tensor can be.
absl::StatusOr<TensorShape> CheckedShape(DType dtype, int64_t tokens, int64_t heads, int64_t dim,
                                         absl::string_view field);

void ToProto(const TensorView& view, v1::TensorShape* message);
// `field` names the tensor in errors ("q").
absl::StatusOr<TensorShape> FromProto(const v1::TensorShape& message, absl::string_view field);

// INVALID_ARGUMENT for what is no token's position. Positions stay so far below 2^63 that no sum of
// a few can overflow.
absl::Status CheckPosition(absl::string_view field, int64_t value);

// Whether a reply's tensors are those of an answer to queries [q_tokens, heads, ·]; INTERNAL, since
// it is the server that is wrong.
absl::Status CheckAnswer(const TensorShape& out, const TensorShape& lse, int64_t q_tokens,
                         int64_t heads);

// Errors: the codes are the same numbers, a hint of when to try again comes along (retry_hint.h),
// and a message is cut to fit a trailer (8 KiB in all).
void ToProto(const absl::Status& status, v1::StepFailure* message);
absl::Status FromProto(const v1::StepFailure& message);
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace annulus
