#include "runtime/protocol/public/index_queries.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/limits.h"
#include "runtime/protocol/public/annulus.pb.h"

namespace annulus {

void ToProto(const IndexQueries& index, v1::IndexQueries* message) {
  message->set_layer(index.layer);
  ToProto(index.q, message->mutable_q());
  message->mutable_weights()->Add(index.weights.begin(), index.weights.end());
}

absl::Status CheckWeightCount(absl::string_view field, size_t count) {
  if (count <= kSelectWeightsMax) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", count, "; expected at most ",
                                                 kSelectWeightsMax,
                                                 ": ask for fewer queries at once"));
}

absl::StatusOr<IndexShape> FromProto(const v1::IndexQueries& message) {
  IndexShape shape;
  ANNULUS_ASSIGN_OR_RETURN(shape.q, FromProto(message.q(), "index.q"));
  const auto weights = static_cast<size_t>(message.weights_size());
  ANNULUS_RETURN_IF_ERROR(CheckWeightCount("index.weights", weights));
  shape.index.layer = message.layer();
  shape.index.q = shape.q.View(nullptr);
  shape.index.weights.assign(message.weights().begin(), message.weights().end());
  return shape;
}

}  // namespace annulus
