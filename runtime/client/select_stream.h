// Calls that answer lists, each over a stream of its own: q goes as an Attend's does, the lists
// come back in chunks.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "annulus/types.h"
#include "runtime/client/transport.h"

namespace grpc {
class Channel;
}  // namespace grpc

namespace annulus {

class TokenFile;

// `token` may be null. INTERNAL for a reply that is none.
absl::StatusOr<SelectResult> StreamSelect(const std::shared_ptr<grpc::Channel>& channel,
                                          TokenFile* token, const SelectRequest& request,
                                          int64_t chunk_bytes, const Attempt& attempt);

absl::StatusOr<CompressResult> StreamCompress(const std::shared_ptr<grpc::Channel>& channel,
                                              TokenFile* token, const CompressRequest& request,
                                              int64_t chunk_bytes, const Attempt& attempt);

}  // namespace annulus
