#include "runtime/server/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_builder.h>

#include <memory>
#include <vector>

#include "runtime/protocol/public/channel.h"

namespace annulus {
namespace {

// Of one connection, all calls. More than all that a server serves at once: the client's library
// would hold back what goes beyond it, unnoticed. gRPC keeps some 12 KB of each until its request
// has come, which nothing else bounds.
constexpr int kStreamsOfConnectionMax = 1024;

// The library of reflection adds itself to every server of a program that links it.
class Reflection final : public grpc::ServerBuilderOption {
 public:
  explicit Reflection(bool wanted) : wanted_(wanted) {}

  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    using Plugin = grpc::reflection::ProtoServerReflectionPlugin;
    std::erase_if(*plugins, [](const auto& plugin) {
      return dynamic_cast<Plugin*>(plugin.get()) != nullptr;
    });
    if (wanted_) plugins->push_back(std::make_unique<Plugin>());
  }

 private:
  const bool wanted_;
};

}  // namespace

void SetUpServer(const GrpcServerSetUp& set_up, grpc::ServerBuilder* builder) {
  grpc::ResourceQuota quota(set_up.name);
  quota.Resize(static_cast<size_t>(set_up.transport_bytes_max));
  quota.SetMaxThreads(set_up.threads_max);
  builder->SetResourceQuota(quota);
  builder->SetMaxReceiveMessageSize(kMessageBytesMax);
  // That bound is of bytes as they come: a message of it may inflate to a thousand times as many.
  builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kStreamWindowBytes);
  // Clients that ping are welcome down to this interval, with or without a call under way.
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              kPingIntervalMinMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Clients that vanished without closing are noticed and their calls cancelled.
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kStreamsOfConnectionMax);
  builder->SetOption(std::make_unique<Reflection>(set_up.reflection));
}

}  // namespace annulus
