#include "runtime/server/watched_end.h"

#include <grpcpp/server_context.h>

#include "runtime/server/peer.h"

namespace annulus {

thread_local std::optional<WatchedEnd::End>* WatchedEnd::end_of_call_ = nullptr;

WatchedEnd::End::End(CallEnds* ends, grpc::ServerContext* context)
    : place(&ends->places_), wait(ends->stalls_, context) {
  if (!place.Take(context, PeerOf(*context, Caller())).ok()) context->TryCancel();
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

}  // namespace annulus
