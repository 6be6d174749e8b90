// The client's side of a data port: one upload. Pure function of its arguments; thread-safe.
#pragma once

#include <grpcpp/support/slice.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace grpc {
class Channel;
class ClientContext;
}  // namespace grpc

namespace annulus {

// Brings the next bytes of an upload, at most as many as a message may carry
// (protocol/public/channel.h); none when there are no more.
using NextBytes = std::function<grpc::Slice()>;

// Uploads to the data port behind `channel`, the bytes as they lie. `rpc` is a fresh one, with the
// call's deadline. Errors as data.proto, but RESOURCE_EXHAUSTED with a hint for an upload that was
// ended before it began.
absl::Status PutUpload(const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext* rpc,
                       uint64_t grant, absl::string_view secret, const NextBytes& next);

}  // namespace annulus
