// Append by way of the service: one gRPC stream from the client, piece after piece.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "runtime/client/transport.h"

namespace grpc {
class Channel;
}  // namespace grpc

namespace annulus {

// Errors as the service's.
absl::StatusOr<AppendResult> StreamAppend(const std::shared_ptr<grpc::Channel>& channel,
                                          const AppendRequest& request, int64_t chunk_bytes,
                                          const Attempt& attempt);

}  // namespace annulus
