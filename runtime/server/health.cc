#include "runtime/server/health.h"

#include <chrono>

#include "absl/strings/str_cat.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/server/handlers.h"

namespace annulus {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// How often a watch looks whether its caller has gone.
constexpr std::chrono::milliseconds kGonePeriod(500);

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

grpc::Status HealthService::Check(grpc::ServerContext* context, const HealthCheckRequest* request,
                                  HealthCheckResponse* reply) {
  // Clients ask here as they connect.
  if (absl::Status status = CheckProtocol(*context); !status.ok()) return ToGrpc(status);
  if (absl::Status status = door_->CheckToken(*context, "Check"); !status.ok()) {
    return ToGrpc(status);
  }
  if (!Knows(request->service())) return {grpc::StatusCode::NOT_FOUND, "no such service"};
  const std::lock_guard<std::mutex> lock(mutex_);
  reply->set_status(serving_ ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING);
  return grpc::Status::OK;
}

grpc::Status HealthService::Watch(grpc::ServerContext* context, const HealthCheckRequest* request,
                                  grpc::ServerWriter<HealthCheckResponse>* stream) {
  const bool known = Knows(request->service());
  std::unique_lock<std::mutex> lock(mutex_);
  if (watches_ >= kHealthWatchesMax) {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED,
            absl::StrCat("health_watches_max ", kHealthWatchesMax, " watches are open")};
  }
  ++watches_;
  HealthCheckResponse told;
  bool told_any = false;
  while (!context->IsCancelled()) {
    const HealthCheckResponse::ServingStatus status = !known ? HealthCheckResponse::SERVICE_UNKNOWN
                                                      : serving_ ? HealthCheckResponse::SERVING
                                                                 : HealthCheckResponse::NOT_SERVING;
    if (!told_any || told.status() != status) {
      told.set_status(status);
      told_any = true;
      lock.unlock();
      const bool sent = stream->Write(told);
      lock.lock();
      if (!sent) break;
    } else if (shut_down_) {
      break;
    } else {
      changed_.wait_for(lock, kGonePeriod);
    }
  }
  --watches_;
  return grpc::Status::OK;
}

}  // namespace annulus
