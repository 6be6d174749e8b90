// HealthService: the standard health service (health.proto) of a server. gRPC has one of its own,
// but that brings threads which take every event of the process and hand it on, and so a hop more
// in each call. Thread-safe.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>

#include "runtime/protocol/public/health.grpc.pb.h"
#include "runtime/server/door.h"

namespace annulus {

class HealthService final : public grpc::health::v1::Health::Service {
 public:
  // `service` is the name that is answered for beside "", the server as a whole. Everybody may ask,
  // but whoever brings a token to Check learns whether it is good. `door` outlives this.
  HealthService(std::string service, Door* door) : service_(std::move(service)), door_(door) {}

  void SetServing(bool serving);
  // Not serving from now on, whatever SetServing says; watches end.
  void Shutdown();

  grpc::Status Check(grpc::ServerContext* context,
                     const grpc::health::v1::HealthCheckRequest* request,
                     grpc::health::v1::HealthCheckResponse* reply) override;
  // RESOURCE_EXHAUSTED names health_watches_max.
  grpc::Status Watch(grpc::ServerContext* context,
                     const grpc::health::v1::HealthCheckRequest* request,
                     grpc::ServerWriter<grpc::health::v1::HealthCheckResponse>* stream) override;

 private:
  bool Knows(const std::string& service) const { return service.empty() || service == service_; }

  const std::string service_;
  Door* const door_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool serving_ = false;
  bool shut_down_ = false;
  int watches_ = 0;
};

// Watches that a server has open at once: each has a thread.
inline constexpr int kHealthWatchesMax = 8;

}  // namespace annulus
