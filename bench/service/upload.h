// How fast KV comes into the service, beside a gRPC stream of the same chunks that nobody looks at.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "annulus/client.h"
#include "bench/service/parts.h"
#include "runtime/protocol/public/tls.h"

namespace annulus {

// In turn: a client streams `bytes` in chunks to a server over loopback that drops them, over TLS
// if `tls` has a certificate (`ca` is its authority), and each of `clients` appends as many of bf16
// KV (8 heads of 128) to a fresh context. Creating and releasing a context does not count. Returns
// the stream's times, then those of each client.
absl::StatusOr<std::vector<Samples>> MeasureUploads(const std::vector<Client*>& clients,
                                                    int64_t bytes, int rounds,
                                                    const ServerTls& tls = {},
                                                    const std::string& ca = "");

}  // namespace annulus
