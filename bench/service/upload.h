// How fast KV comes into the service, beside a gRPC stream of the same chunks that nobody looks at.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "annulus/client.h"
#include "bench/service/parts.h"

namespace annulus {

// A client streams `bytes` in chunks to a server over loopback that drops them.
absl::StatusOr<Samples> MeasureGrpcStream(int64_t bytes, int rounds);

// `client` appends `bytes` of bf16 KV (8 heads of 128) to a fresh context, over and over; creating
// and releasing the context does not count.
absl::StatusOr<Samples> MeasureUpload(Client& client, int64_t bytes, int rounds);

}  // namespace annulus
