// Append by way of the service: one gRPC stream from the client, piece after piece.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "runtime/client/transport.h"

namespace grpc {
class Channel;
}  // namespace grpc

namespace annulus {

class TokenFile;

// `token` may be null. Errors as the service's.
absl::StatusOr<AppendResult> StreamAppend(const std::shared_ptr<grpc::Channel>& channel,
                                          TokenFile* token, const AppendRequest& request,
                                          int64_t chunk_bytes, const Attempt& attempt);

}  // namespace annulus
