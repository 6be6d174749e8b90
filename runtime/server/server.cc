#include "runtime/server/server.h"

#include <google/protobuf/stubs/logging.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <mutex>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/server/acceptor.h"
#include "runtime/server/door.h"
#include "runtime/server/grpc_server.h"
#include "runtime/server/handlers.h"
#include "runtime/server/health.h"
#include "runtime/server/step_service.h"

namespace annulus {
namespace {

constexpr char kServiceName[] = "annulus.v1.Annulus";

// Threads beyond those of calls with a place: pollers, streams of health, and calls that end.
constexpr int kSpareThreads = 56 + kHealthWatchesMax + kEndsMax;

class GrpcServer final : public RpcServer {
 public:
  explicit GrpcServer(const RpcServerOptions& options)
      : door_(options.door != nullptr ? options.door : &open_door_),
        bounds_(options.limits),
        health_(kServiceName, door_, &bounds_.stalls, &bounds_.ends),
        steps_(options.service, door_, &bounds_),
        annulus_(MakeAnnulusHandlers(options.service, door_, &bounds_, &steps_,
                                     options.limits.stream, options.limits.chunk_bytes)) {
    if (options.join.has_value()) join_ = MakeJoinHandlers(*options.join, door_, &bounds_);
  }

  ~GrpcServer() override { Shutdown(absl::ZeroDuration()); }

  absl::Status Listen(const RpcServerOptions& options) {
    HoldGrpc();
    grpc::EnableDefaultHealthCheckService(false);
    ANNULUS_ASSIGN_OR_RETURN(
        acceptor_, Acceptor::Listen(options.listen, options.limits.connections, options.counts));
    grpc::ServerBuilder builder;
    const RpcLimits& limits = options.limits;
    SetUpServer({.name = "annulus",
                 .transport_bytes_max = limits.transport_bytes_max,
                 .threads_max = limits.transfers_max + limits.step_streams_max +
                                limits.short_calls_max + kSpareThreads,
                 .reflection = options.reflection && !door_->asks()},
                &builder);
    ANNULUS_ASSIGN_OR_RETURN(tls_, TlsFiles::Open(options.tls));
    acceptor_->AddTo(&builder, *tls_);
    builder.RegisterService(annulus_.get());
    builder.RegisterService(&health_);
    if (join_ != nullptr) builder.RegisterService(join_.get());
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return absl::InternalError("gRPC starts no server");
    acceptor_->Start();
    SetServing(true);
    return absl::OkStatus();
  }

  int port() const override { return acceptor_->port(); }

  RpcLoad Load() const override { return bounds_.Load(); }
  TlsFiles::Reading tls() const override { return tls_->reading(); }

  bool Answers(absl::Duration patience) override { return acceptor_->Answers(patience); }

  void SetServing(bool serving) override { health_.SetServing(serving); }

  void Shutdown(absl::Duration grace) override {
    std::lock_guard lock(shutdown_mutex_);
    if (server_ == nullptr || down_) return;
    acceptor_->Stop();
    health_.Shutdown();
    steps_.Drain();
    server_->Shutdown(absl::ToChronoTime(absl::Now() + grace));
    server_->Wait();
    down_ = true;
  }

 private:
  Door open_door_{nullptr};
  Door* const door_;
  RpcBounds bounds_;
  HealthService health_;
  StepService steps_;
  std::unique_ptr<grpc::Service> annulus_;
  std::unique_ptr<grpc::Service> join_;
  std::unique_ptr<Acceptor> acceptor_;
  std::unique_ptr<TlsFiles> tls_;
  std::unique_ptr<grpc::Server> server_;
  std::mutex shutdown_mutex_;
  bool down_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(const RpcServerOptions& options) {
  ANNULUS_RETURN_IF_ERROR(CheckHostPort("listen", options.listen));
  ANNULUS_RETURN_IF_ERROR(CheckLimits(options.limits));
  // It would write a line to stderr for every text of a client that is not UTF-8, which is refused.
  google::protobuf::SetLogHandler(nullptr);
  auto server = std::make_unique<GrpcServer>(options);
  ANNULUS_RETURN_IF_ERROR(server->Listen(options));
  return server;
}

}  // namespace annulus
