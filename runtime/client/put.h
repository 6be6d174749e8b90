// The client's side of a data port: one upload. Pure function of its arguments; thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace grpc {
class Channel;
class ClientContext;
}  // namespace grpc

namespace annulus {

// Brings the next bytes of an upload: at least one and at most as a message may carry
// (protocol/public/channel.h); false when there are no more.
using NextBytes = std::function<bool(std::string* data)>;

// Uploads to the data port behind `channel`. `rpc` is a fresh one, with the call's deadline.
// Errors as data.proto, but RESOURCE_EXHAUSTED with a hint for an upload that was ended before it
// began.
absl::Status PutUpload(const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext* rpc,
                       uint64_t grant, absl::string_view secret, const NextBytes& next);

}  // namespace annulus
