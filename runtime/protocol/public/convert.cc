#include "runtime/protocol/public/convert.h"

#include <grpcpp/support/status.h>

#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "annulus/retry_hint.h"
#include "base/status.h"
#include "runtime/protocol/public/annulus.pb.h"
#include "runtime/service/list_not_kept.h"

namespace annulus {
namespace {

// Below gRPC's limit for a trailer even if every byte is escaped to three.
constexpr size_t kErrorTextBytesMax = 2000;

// gRPC's own words for a call that found no thread free, as in a burst of them: nothing of it has
// run.
constexpr char kNoThread[] = "Server Threadpool Exhausted";
constexpr absl::Duration kNoThreadWait = absl::Milliseconds(20);

// Of every tensor in version 1 of the protocol.
constexpr char kLayoutNhd[] = "NHD";

absl::Status CheckExtent(absl::string_view field, absl::string_view extent, int64_t value) {
  if (value >= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ".", extent, ": ", value, "; expected 1 or more"));
}

std::string CutMessage(const absl::Status& status) {
  std::string message(status.message());
  if (message.size() > kErrorTextBytesMax) {
    message.resize(kErrorTextBytesMax);
    message += " ...";
  }
  return message;
}

void ToProto(const absl::Status& status, v1::ErrorDetails* message) {
  const absl::optional<absl::Duration> wait = RetryAfter(status);
  if (wait.has_value()) message->set_retry_after_ms(absl::ToInt64Milliseconds(*wait));
  message->set_list_not_kept(IsListNotKept(status));
}

absl::Status FromProto(const v1::ErrorDetails& message, absl::Status status) {
  if (message.list_not_kept()) status = WithListNotKept(std::move(status));
  if (message.retry_after_ms() < 1) return status;
  return WithRetryAfter(std::move(status), absl::Milliseconds(message.retry_after_ms()));
}

}  // namespace

std::string EncodingOf(const google::protobuf::MessageLite& message) {
  return message.SerializeAsString();
}

absl::Status ParseEncoding(const std::string& bytes, google::protobuf::MessageLite* message) {
  if (message->ParseFromString(bytes)) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(message->GetTypeName(), ": some text; expected UTF-8 in all of them"));
}

void ToProto(const TensorView& view, v1::TensorShape* message) {
  message->set_dtype(TextForm<DType>::Write(view.dtype));
  message->set_tokens(view.tokens);
  message->set_heads(view.heads);
  message->set_dim(view.dim);
  message->set_layout(kLayoutNhd);
}

absl::StatusOr<TensorShape> FromProto(const v1::TensorShape& message, absl::string_view field) {
  DType dtype = DType::kF32;
  const FieldPath path{nullptr, field};
  if (!message.layout().empty() && message.layout() != kLayoutNhd) {
    const std::string quoted = absl::CHexEscape(message.layout().substr(0, 64));
    return BadField(FieldPath{&path, "layout"}, quoted, "NHD, which is [tokens, heads, dim]");
  }
  ANNULUS_RETURN_IF_ERROR(ReadText(message.dtype(), FieldPath{&path, "dtype"}, &dtype));
  return CheckedShape(dtype, message.tokens(), message.heads(), message.dim(), field);
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
    return absl::InvalidArgumentError(absl::StrCat(field, ": [", shape.tokens, ", ", shape.heads,
                                                   ", ", shape.dim, "] of ", Name(shape.dtype),
                                                   "; expected a size below 2^63 bytes"));
  }
  shape.bytes = bytes;
  return shape;
}

absl::Status CheckPosition(absl::string_view field, int64_t value) {
  if (value >= 0 && value <= kPositionMax) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", value, "; expected 0 to ", kPositionMax));
}

absl::Status CheckAnswer(const TensorShape& out, const TensorShape& lse, int64_t q_tokens,
                         int64_t heads) {
  const auto check = [&](const TensorShape& shape, absl::string_view field, int64_t dim_max) {
    if (shape.dtype == DType::kF32 && shape.tokens == q_tokens && shape.heads == heads &&
        shape.dim <= dim_max) {
      return absl::OkStatus();
    }
    return absl::InternalError(absl::StrCat("the reply's ", field, ": [", shape.tokens, ", ",
                                            shape.heads, ", ", shape.dim, "]; expected [", q_tokens,
                                            ", ", heads, ", 1 to ", dim_max, "] of f32"));
  };
  ANNULUS_RETURN_IF_ERROR(check(out, "out", kHeadDimMax));
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
  const absl::Status error(static_cast<absl::StatusCode>(status.error_code()),
                           status.error_message());
  if (absl::IsResourceExhausted(error) && error.message() == kNoThread) {
    return WithRetryAfter(error, kNoThreadWait);
  }
  return FromProto(details, error);
}

}  // namespace annulus
