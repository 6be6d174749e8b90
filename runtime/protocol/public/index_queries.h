// The index queries of a call as the public protocol has them (IndexQueries in annulus.proto). Pure
// functions.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "annulus/types.h"
#include "runtime/protocol/public/convert.h"

namespace annulus {
namespace v1 {
class IndexQueries;
}  // namespace v1

// Client: all but the rows of q.
void ToProto(const IndexQueries& index, v1::IndexQueries* message);

// What a message declares.
struct IndexShape {
  IndexQueries index;  // whose q has no data
  TensorShape q;
};

// Server: INVALID_ARGUMENT names the field that makes no sense.
absl::StatusOr<IndexShape> FromProto(const v1::IndexQueries& message);

// INVALID_ARGUMENT for more weights than a call may bring.
absl::Status CheckWeightCount(absl::string_view field, size_t count);

}  // namespace annulus
