// WatchedEnd: the last message of a call and its status leave once its handler has returned, when
// nothing of ours holds the call any more; they wait for a client that does not read as every
// message does, on one of the server's threads. Once the handler of a watched method has done its
// work, the call has a place among those that end, of which one peer has half at most, and a
// StallWatch watches over it.
#pragma once

#include <grpcpp/impl/rpc_service_method.h>

#include <memory>
#include <optional>
#include <utility>

#include "runtime/protocol/public/unary.h"
#include "runtime/server/places.h"
#include "runtime/server/stall_watch.h"

namespace annulus {

// Calls that end at once. One whose client reads takes some µs to.
inline constexpr int kEndsMax = 256;

// The calls of a server that end. Thread-safe; outlives them.
class CallEnds {
 public:
  explicit CallEnds(StallWatch* stalls) : stalls_(stalls) {}

 private:
  friend class WatchedEnd;

  Places places_{"ends_max", kEndsMax};
  StallWatch* const stalls_;
};

class WatchedEnd final : public grpc::internal::MethodHandler {
 public:
  // Takes the handler over.
  explicit WatchedEnd(grpc::internal::MethodHandler* handler) : handler_(handler) {}

  // The call that this thread serves has nothing left but its end. Where there is no place for one
  // more of its peer, it is cut.
  static void Begin(CallEnds* ends, grpc::ServerContext* context);

  void RunHandler(const HandlerParameter& param) override;
  void* Deserialize(grpc_call* call, grpc_byte_buffer* request, grpc::Status* status,
                    void** handler_data) override {
    return handler_->Deserialize(call, request, status, handler_data);
  }

 private:
  struct End {
    End(CallEnds* ends, grpc::ServerContext* context);

    Places::Place place;
    StallWatch::Wait wait;
  };
  // gRPC runs a call's handler and its end on one thread, one call at a time.
  static thread_local std::optional<End>* end_of_call_;

  const std::unique_ptr<grpc::internal::MethodHandler> handler_;
};

// For grpc::Service::AddMethod, which takes over what they return: a method at `path`, which
// outlives the service, of which each call's end is watched. `ends` outlives it too.
//
// `serve` takes what gRPC's `Handler` gives its function, the service `self` first, and returns a
// grpc::Status.
template <typename Handler, typename Self, typename Serve>
grpc::internal::RpcServiceMethod* NewWatchedMethod(const char* path,
                                                   grpc::internal::RpcMethod::RpcType type,
                                                   CallEnds* ends, Self* self, Serve serve) {
  const auto run = [ends, serve = std::move(serve)](Self* of, grpc::ServerContext* context,
                                                    auto*... arguments) {
    grpc::Status status = serve(of, context, arguments...);
    WatchedEnd::Begin(ends, context);
    return status;
  };
  return new grpc::internal::RpcServiceMethod(path, type, new WatchedEnd(new Handler(run, self)));
}
grpc::internal::RpcServiceMethod* NewWatchedUnary(const char* path, CallEnds* ends,
                                                  UnaryHandler serve);

}  // namespace annulus
