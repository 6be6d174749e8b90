// HealthService: the standard health service (health.proto) of a server. gRPC has one of its own,
// but that brings threads which take every event of the process and hand it on, and so a hop more
// in each call. Thread-safe.
#pragma once

#include <grpcpp/impl/service_type.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/sync_stream.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>

#include "runtime/protocol/public/health.pb.h"
#include "runtime/server/door.h"
#include "runtime/server/stall_watch.h"
#include "runtime/server/watched_end.h"

namespace annulus {

class HealthService final : public grpc::Service {
 public:
  // `service` is the name that is answered for beside "", the server as a whole. Everybody may ask,
  // but whoever brings a token to Check learns whether it is good. The others outlive
  // this.
  HealthService(std::string service, Door* door, StallWatch* stalls, CallEnds* ends);

  void SetServing(bool serving);
  // Not serving from now on, whatever SetServing says; watches end.
  void Shutdown();

 private:
  using Watching = grpc::ServerWriter<grpc::health::v1::HealthCheckResponse>;

  grpc::Status Check(const grpc::ServerContext& context, const std::string& request,
                     std::string* reply);
  // RESOURCE_EXHAUSTED names health_watches_max.
  grpc::Status Watch(grpc::ServerContext* context, const grpc::ByteBuffer& request,
                     Watching* stream);
  void Tell(grpc::ServerContext* context, bool known, Watching* stream,
            std::unique_lock<std::mutex>* lock);
  bool Knows(const std::string& service) const { return service.empty() || service == service_; }

  const std::string service_;
  Door* const door_;
  StallWatch* const stalls_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool serving_ = false;
  bool shut_down_ = false;
  int watches_ = 0;
  std::map<std::string, int> watches_of_;  // by peer
};

// Watches that a server has open at once: each has a thread. One peer has half of them at most.
inline constexpr int kHealthWatchesMax = 8;

}  // namespace annulus
