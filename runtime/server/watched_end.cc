#include "runtime/server/watched_end.h"

#include <grpcpp/server_context.h>

#include <string>

#include "base/peer_address.h"

namespace annulus {

thread_local std::optional<WatchedEnd::End>* WatchedEnd::end_of_call_ = nullptr;

WatchedEnd::End::End(CallEnds* ends, grpc::ServerContext* context)
    : place(&ends->places_), wait(ends->stalls_, context) {
  if (!place.Take(context, PeerOfUri(context->peer())).ok()) context->TryCancel();
}

void WatchedEnd::Begin(CallEnds* ends, grpc::ServerContext* context) {
  if (end_of_call_ != nullptr) end_of_call_->emplace(ends, context);
}

void WatchedEnd::RunHandler(const HandlerParameter& param) {
  std::optional<End> end;
  end_of_call_ = &end;
  handler_->RunHandler(param);
  end_of_call_ = nullptr;
}

grpc::internal::RpcServiceMethod* NewWatchedUnary(const char* path, CallEnds* ends,
                                                  UnaryHandler serve) {
  const auto run = [ends, serve = std::move(serve)](
                       grpc::ServerContext* rpc, const std::string& request, std::string* reply) {
    grpc::Status status = serve(rpc, request, reply);
    WatchedEnd::Begin(ends, rpc);
    return status;
  };
  return new grpc::internal::RpcServiceMethod(path, grpc::internal::RpcMethod::NORMAL_RPC,
                                              new WatchedEnd(NewUnaryHandler(run)));
}

}  // namespace annulus
