// Append by way of the service: one gRPC stream from the client, piece after piece.
#pragma once

#include "absl/status/statusor.h"
#include "runtime/client/transport.h"
#include "runtime/rpc/annulus.grpc.pb.h"

namespace annulus {

// Errors as the service's.
absl::StatusOr<AppendResult> StreamAppend(v1::Annulus::StubInterface* stub,
                                          const AppendRequest& request, int64_t chunk_bytes,
                                          const Attempt& attempt);

}  // namespace annulus
