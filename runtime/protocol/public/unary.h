// Unary calls of annulus.v1.Annulus by name, with encoded messages: what the code that gRPC
// generates for each call does, once for all of them. Thread-safe.
#pragma once

#include <functional>
#include <string>

#include "absl/strings/string_view.h"

namespace grpc {
class ByteBuffer;
class Channel;
class ClientContext;
class ServerContext;
class Status;
namespace internal {
class MethodHandler;
}  // namespace internal
}  // namespace grpc

namespace annulus {

// "/annulus.v1.Annulus/Fork" of "Fork".
std::string PathOf(absl::string_view call);

// Client: the reply is empty where the status is an error.
grpc::Status CallUnary(grpc::Channel* channel, const std::string& path, grpc::ClientContext* rpc,
                       const std::string& request, std::string* reply);

// Server: what answers a call, for a grpc::internal::RpcServiceMethod, which takes it over.
grpc::Status BytesOf(const grpc::ByteBuffer& buffer, std::string* bytes);
using UnaryHandler = std::function<grpc::Status(grpc::ServerContext* rpc,
                                                const std::string& request, std::string* reply)>;
grpc::internal::MethodHandler* NewUnaryHandler(UnaryHandler handler);

}  // namespace annulus
