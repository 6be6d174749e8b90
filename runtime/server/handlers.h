// The gRPC services of annulus.proto, each turning messages into calls of what is behind it. They
// run on gRPC's threads, one call per thread, and block there. What they point to outlives them.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "runtime/protocol/public/tensor_stream.h"
#include "runtime/server/limits.h"
#include "runtime/service/service.h"

namespace grpc {
class ServerContext;
class Service;
}  // namespace grpc

namespace annulus {

class Door;
class StepService;

// What a call asks for is checked before room is taken for it, and that before its tensors are
// read.
std::unique_ptr<grpc::Service> MakeAnnulusHandlers(Service* service, Door* door, RpcBounds* bounds,
                                                   StepService* steps, const StreamLimits& limits,
                                                   int64_t chunk_bytes);

// FAILED_PRECONDITION says which version of the protocol the caller speaks and which this is.
absl::Status CheckProtocol(const grpc::ServerContext& context);

// The trace that a call's caller is in, if it says so.
TraceContext TraceOf(const grpc::ServerContext& context);

// Whether the caller of an rpc has gone, for work that asks often. For one thread at a time; the
// context outlives what is returned.
std::function<bool()> CallerGone(const grpc::ServerContext* context);

}  // namespace annulus
