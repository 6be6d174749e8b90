// How fast KV comes into the service, beside a gRPC stream of the same chunks that nobody looks at.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "annulus/client.h"
#include "bench/service/parts.h"
#include "runtime/protocol/public/tls.h"

namespace annulus {

// A client streams `bytes` in chunks to a server over loopback that drops them, over TLS if there
// is a certificate; `ca` is its authority.
absl::StatusOr<Samples> MeasureGrpcStream(int64_t bytes, int rounds, const ServerTls& tls = {},
                                          const std::string& ca = "");

// `client` appends `bytes` of bf16 KV (8 heads of 128) to a fresh context, over and over; creating
// and releasing the context does not count.
absl::StatusOr<Samples> MeasureUpload(Client& client, int64_t bytes, int rounds);

}  // namespace annulus
