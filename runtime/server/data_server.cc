#include "runtime/server/data_server.h"

#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include "absl/strings/str_cat.h"
#include "annulus/retry_hint.h"
#include "base/status.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/protocol/public/data.grpc.pb.h"
#include "runtime/server/door.h"
#include "runtime/worker/grants.h"

namespace annulus {
namespace {

// How long a client may be ahead of its coordinator's message.
constexpr absl::Duration kGrantWait = absl::Milliseconds(500);
// gRPC's own buffers, of all connections.
constexpr size_t kTransportBytesMax = size_t{128} << 20;
constexpr int kPutsLimit = 10'000;
constexpr int kSpareThreads = 4;

class Handlers final : public v1::Data::Service {
 public:
  Handlers(GrantTable* grants, Door* door, int puts_max)
      : grants_(grants), door_(door), puts_max_(puts_max) {}

  grpc::Status Put(grpc::ServerContext* context, grpc::ServerReader<v1::PutPart>* stream,
                   v1::PutDone*) override {
    if (door_ != nullptr) {
      const absl::Status may = door_->Admit(*context, "Put", Access::kWrite).status();
      if (!may.ok()) return ToGrpc(may);
    }
    const bool room = puts_.fetch_add(1) < puts_max_;
    const absl::Status status =
        room ? DoPut(context, stream)
             : WithRetryAfter(absl::ResourceExhaustedError(absl::StrCat(
                                  "puts_max ", puts_max_, " uploads are under way; back off")),
                              absl::Milliseconds(20));
    --puts_;
    return ToGrpc(status);
  }

  uint64_t bytes_received() const { return bytes_received_.load(); }

 private:
  absl::Status DoPut(grpc::ServerContext* context, grpc::ServerReader<v1::PutPart>* stream) {
    v1::PutPart part;
    if (!stream->Read(&part) || !part.has_header()) {
      return absl::InvalidArgumentError("header is missing; expected it as the first message");
    }
    // What waits for bytes that must not be stored any more need not wait.
    ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<GrantTable::Upload> upload,
                             grants_->Claim(part.header().grant(), part.header().secret(),
                                            kGrantWait, [context] { context->TryCancel(); }));
    while (stream->Read(&part)) {
      const std::string& data = part.data();
      if (part.part_case() != v1::PutPart::kData || data.empty()) {
        return absl::InvalidArgumentError("data is missing; expected some in every later message");
      }
      ANNULUS_RETURN_IF_ERROR(upload->Add(data));
      bytes_received_ += data.size();
    }
    return upload->Finish();
  }

  GrantTable* const grants_;
  Door* const door_;
  const int puts_max_;
  std::atomic<int> puts_ = 0;
  std::atomic<uint64_t> bytes_received_ = 0;
};

class GrpcDataServer final : public DataServer {
 public:
  explicit GrpcDataServer(const DataServerOptions& options)
      : handlers_(options.grants, options.door, options.puts_max) {}

  ~GrpcDataServer() override {
    if (server_ != nullptr) server_->Shutdown(absl::ToChronoTime(absl::InfinitePast()));
  }

  absl::Status Listen(const DataServerOptions& options) {
    grpc::ServerBuilder builder;
    grpc::ResourceQuota quota("annulus data");
    quota.Resize(kTransportBytesMax);
    quota.SetMaxThreads(options.puts_max + kSpareThreads);
    builder.SetResourceQuota(quota);
    builder.SetMaxReceiveMessageSize(kMessageBytesMax);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kStreamWindowBytes);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                               kPingIntervalMinMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    int port = 0;
    ANNULUS_ASSIGN_OR_RETURN(const auto credentials, MakeServerCredentials(options.tls));
    builder.AddListeningPort(options.listen, credentials, &port);
    builder.RegisterService(&handlers_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen for data on \"", options.listen,
                       "\"; expected an address of this machine and a free port"));
    }
    address_ = absl::StrCat(options.tls.on() ? kTlsScheme : "",
                            options.listen.substr(0, options.listen.rfind(':')), ":", port);
    return absl::OkStatus();
  }

  std::string address() const override { return address_; }
  uint64_t bytes_received() const override { return handlers_.bytes_received(); }

 private:
  Handlers handlers_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DataServer>> DataServer::Start(const DataServerOptions& options) {
  ANNULUS_RETURN_IF_ERROR(CheckHostPort("data-listen", options.listen));
  if (options.puts_max < 1 || options.puts_max > kPutsLimit) {
    return absl::InvalidArgumentError(
        absl::StrCat("puts_max is ", options.puts_max, "; expected 1 to ", kPutsLimit));
  }
  auto server = std::make_unique<GrpcDataServer>(options);
  ANNULUS_RETURN_IF_ERROR(server->Listen(options));
  return server;
}

}  // namespace annulus
