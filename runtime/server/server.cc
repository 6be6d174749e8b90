#include "runtime/server/server.h"

#include <google/protobuf/stubs/logging.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/service_type.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <memory>
#include <mutex>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/server/admission.h"
#include "runtime/server/door.h"
#include "runtime/server/handlers.h"
#include "runtime/server/health.h"
#include "runtime/server/stall_watch.h"
#include "runtime/server/step_service.h"

namespace annulus {
namespace {

constexpr char kServiceName[] = "annulus.v1.Annulus";

// Threads beyond in_flight_max: pollers, and the short calls, which must answer under load too.
constexpr int kSpareThreads = 16 + kHealthWatchesMax;

absl::Status CheckLimit(absl::string_view name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, "; expected ", low, " to ", high));
}

absl::Status Check(const RpcLimits& limits) {
  constexpr int64_t kBytesMax = int64_t{1} << 50;
  ANNULUS_RETURN_IF_ERROR(CheckLimit("in_flight_max", limits.in_flight_max, 1, 10'000));
  ANNULUS_RETURN_IF_ERROR(CheckLimit("buffer_bytes_max", limits.buffer_bytes_max, 1, kBytesMax));
  ANNULUS_RETURN_IF_ERROR(
      CheckLimit("request_bytes_max", limits.stream.request_bytes_max, 1, limits.buffer_bytes_max));
  ANNULUS_RETURN_IF_ERROR(
      CheckLimit("piece_bytes_max", limits.stream.piece_bytes_max, 1, limits.buffer_bytes_max));
  ANNULUS_RETURN_IF_ERROR(CheckLimit("step_streams_max", limits.step_streams_max, 1, 10'000));
  ANNULUS_RETURN_IF_ERROR(CheckLimit("client_stall_max in ms",
                                     absl::ToInt64Milliseconds(limits.client_stall_max), 10,
                                     absl::ToInt64Milliseconds(absl::Hours(1))));
  ANNULUS_RETURN_IF_ERROR(CheckLimit("transport_bytes_max", limits.transport_bytes_max,
                                     2 * kMessageBytesMax, kBytesMax));
  return CheckLimit("chunk_bytes", limits.chunk_bytes, 1, kMessageBytesMax - kMessageRoomBytes);
}

// Every server of a process has reflection otherwise. Its handlers are gRPC's own and ask nobody
// who calls.
class WithoutReflection final : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    const std::string name = grpc::reflection::ProtoServerReflectionPlugin().name();
    std::erase_if(*plugins, [&](const auto& plugin) { return plugin->name() == name; });
  }
};

class GrpcServer final : public RpcServer {
 public:
  explicit GrpcServer(const RpcServerOptions& options)
      : door_(options.door != nullptr ? options.door : &open_door_),
        admission_(options.limits.in_flight_max, options.limits.buffer_bytes_max),
        health_(kServiceName, door_),
        stalls_(options.limits.client_stall_max),
        steps_(options.service, door_, &admission_, &stalls_, options.limits.step_streams_max),
        annulus_(MakeAnnulusHandlers(options.service, door_, &admission_, &steps_, &stalls_,
                                     options.limits.stream, options.limits.chunk_bytes)) {
    if (options.rendezvous != nullptr) {
      rendezvous_ = MakeRendezvousHandlers(options.rendezvous, door_, &admission_);
    }
  }

  ~GrpcServer() override { Shutdown(absl::ZeroDuration()); }

  absl::Status Listen(const RpcServerOptions& options) {
    HoldGrpc();
    static std::once_flag plugins;
    std::call_once(plugins, [] {
      grpc::EnableDefaultHealthCheckService(false);
      grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    });
    grpc::ServerBuilder builder;
    if (door_->asks()) builder.SetOption(std::make_unique<WithoutReflection>());
    grpc::ResourceQuota quota("annulus");
    quota.Resize(static_cast<size_t>(options.limits.transport_bytes_max));
    quota.SetMaxThreads(options.limits.in_flight_max + options.limits.step_streams_max +
                        kSpareThreads);
    builder.SetResourceQuota(quota);
    builder.SetMaxReceiveMessageSize(kMessageBytesMax);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kStreamWindowBytes);
    // Two servers on one port would each get some of the connections, unnoticed.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    // Clients that ping are welcome down to this interval, with or without a call under way.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                               kPingIntervalMinMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    // Clients that vanished without closing are noticed and their calls cancelled.
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
    ANNULUS_ASSIGN_OR_RETURN(const auto credentials, MakeServerCredentials(options.tls));
    builder.AddListeningPort(options.listen, credentials, &port_);
    builder.RegisterService(annulus_.get());
    builder.RegisterService(&health_);
    if (rendezvous_ != nullptr) builder.RegisterService(rendezvous_.get());
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on \"", options.listen,
                       "\"; expected an address of this machine and a free port"));
    }
    SetServing(true);
    return absl::OkStatus();
  }

  int port() const override { return port_; }

  void SetServing(bool serving) override { health_.SetServing(serving); }

  void Shutdown(absl::Duration grace) override {
    std::lock_guard lock(shutdown_mutex_);
    if (server_ == nullptr || down_) return;
    health_.Shutdown();
    steps_.Drain();
    server_->Shutdown(absl::ToChronoTime(absl::Now() + grace));
    server_->Wait();
    down_ = true;
  }

 private:
  Door open_door_{nullptr};
  Door* const door_;
  Admission admission_;
  HealthService health_;
  StallWatch stalls_;
  StepService steps_;
  std::unique_ptr<grpc::Service> annulus_;
  std::unique_ptr<grpc::Service> rendezvous_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  std::mutex shutdown_mutex_;
  bool down_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(const RpcServerOptions& options) {
  ANNULUS_RETURN_IF_ERROR(CheckHostPort("listen", options.listen));
  ANNULUS_RETURN_IF_ERROR(Check(options.limits));
  // It would write a line to stderr for every text of a client that is not UTF-8, which is refused.
  google::protobuf::SetLogHandler(nullptr);
  auto server = std::make_unique<GrpcServer>(options);
  ANNULUS_RETURN_IF_ERROR(server->Listen(options));
  return server;
}

}  // namespace annulus
