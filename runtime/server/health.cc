#include "runtime/server/health.h"

#include <grpcpp/impl/rpc_service_method.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/method_handler.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/peer_address.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/protocol/public/health.grpc.pb.h"  // how its messages are read and written
#include "runtime/protocol/public/unary.h"
#include "runtime/server/handlers.h"

namespace annulus {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// How often a watch looks whether its caller has gone.
constexpr std::chrono::milliseconds kGonePeriod(500);

// Anybody may send one: it is looked at only if it is as small as a service's name makes it.
constexpr size_t kRequestBytesMax = 1024;

grpc::Status NoRequest() {
  return {grpc::StatusCode::INVALID_ARGUMENT,
          absl::StrCat("request: not one; expected a HealthCheckRequest of at most ",
                       kRequestBytesMax, " bytes")};
}

}  // namespace

void HealthService::SetServing(bool serving) {
  const std::lock_guard<std::mutex> lock(mutex_);
  serving_ = serving && !shut_down_;
  changed_.notify_all();
}

void HealthService::Shutdown() {
  const std::lock_guard<std::mutex> lock(mutex_);
  shut_down_ = true;
  serving_ = false;
  changed_.notify_all();
}

HealthService::HealthService(std::string service, Door* door, StallWatch* stalls, CallEnds* ends)
    : service_(std::move(service)), door_(door), stalls_(stalls) {
  using WatchHandler =
      grpc::internal::ServerStreamingHandler<HealthService, grpc::ByteBuffer, HealthCheckResponse>;
  const auto check = [this](grpc::ServerContext* context, const std::string& request,
                            std::string* reply) { return Check(*context, request, reply); };
  const auto watch = [](HealthService* self, grpc::ServerContext* context,
                        const grpc::ByteBuffer* request,
                        Watching* stream) { return self->Watch(context, *request, stream); };
  AddMethod(NewWatchedUnary("/grpc.health.v1.Health/Check", ends, check));
  AddMethod(new grpc::internal::RpcServiceMethod("/grpc.health.v1.Health/Watch",
                                                 grpc::internal::RpcMethod::SERVER_STREAMING,
                                                 new WatchHandler(watch, this)));
}

grpc::Status HealthService::Check(const grpc::ServerContext& context, const std::string& request,
                                  std::string* reply) {
  // Clients ask here as they connect.
  if (absl::Status status = CheckProtocol(context); !status.ok()) return ToGrpc(status);
  if (absl::Status status = door_->CheckToken(context, "Check"); !status.ok()) {
    return ToGrpc(status);
  }
  HealthCheckRequest asked;
  if (request.size() > kRequestBytesMax || !asked.ParseFromString(request)) return NoRequest();
  if (!Knows(asked.service())) return {grpc::StatusCode::NOT_FOUND, "no such service"};
  HealthCheckResponse told;
  const std::lock_guard<std::mutex> lock(mutex_);
  told.set_status(serving_ ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING);
  told.SerializeToString(reply);
  return grpc::Status::OK;
}

grpc::Status HealthService::Watch(grpc::ServerContext* context, const grpc::ByteBuffer& request,
                                  Watching* stream) {
  HealthCheckRequest asked;
  std::string bytes;
  if (request.Length() > kRequestBytesMax || !BytesOf(request, &bytes).ok() ||
      !asked.ParseFromString(bytes)) {
    return NoRequest();
  }
  const std::string peer = PeerOfUri(context->peer());
  std::unique_lock<std::mutex> lock(mutex_);
  int& of_peer = watches_of_[peer];
  if (watches_ >= kHealthWatchesMax || of_peer >= kHealthWatchesMax / 2) {
    if (of_peer == 0) watches_of_.erase(peer);
    return {grpc::StatusCode::RESOURCE_EXHAUSTED,
            absl::StrCat("health_watches_max: ", kHealthWatchesMax, "; ", watches_, " in use, ",
                         of_peer, " of them by this caller, this call needs 1 more")};
  }
  ++watches_;
  ++of_peer;
  Tell(context, Knows(asked.service()), stream, &lock);
  --watches_;
  if (--watches_of_[peer] == 0) watches_of_.erase(peer);
  return grpc::Status::OK;
}

void HealthService::Tell(grpc::ServerContext* context, bool known, Watching* stream,
                         std::unique_lock<std::mutex>* lock) {
  HealthCheckResponse told;
  bool told_any = false;
  while (!context->IsCancelled()) {
    const HealthCheckResponse::ServingStatus status = !known ? HealthCheckResponse::SERVICE_UNKNOWN
                                                      : serving_ ? HealthCheckResponse::SERVING
                                                                 : HealthCheckResponse::NOT_SERVING;
    if (!told_any || told.status() != status) {
      told.set_status(status);
      told_any = true;
      lock->unlock();
      bool sent = false;
      {
        const StallWatch::Wait wait(stalls_, context);
        sent = stream->Write(told);
      }
      lock->lock();
      if (!sent) break;
    } else if (shut_down_) {
      break;
    } else {
      changed_.wait_for(*lock, kGonePeriod);
    }
  }
}

}  // namespace annulus
