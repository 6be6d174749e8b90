#include "runtime/server/data_server.h"

#include <grpcpp/impl/service_type.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/method_handler.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/identity/peer_name.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/protocol/public/data.grpc.pb.h"
#include "runtime/server/acceptor.h"
#include "runtime/server/door.h"
#include "runtime/server/grpc_server.h"
#include "runtime/server/limits.h"
#include "runtime/server/places.h"
#include "runtime/server/stream_part.h"
#include "runtime/server/watched_end.h"
#include "runtime/worker/grants.h"

namespace annulus {
namespace {

// How long a client may be ahead of its coordinator's message.
constexpr absl::Duration kGrantWait = absl::Milliseconds(500);
// gRPC's own buffers, of all connections.
constexpr int64_t kTransportBytesMax = int64_t{128} << 20;
constexpr int kPutsLimit = 10'000;
constexpr int kSpareThreads = 32 + kEndsMax;  // pollers, and uploads that end or are refused

class Handlers final : public grpc::Service {
 public:
  explicit Handlers(const DataServerOptions& options)
      : grants_(options.grants),
        door_(options.door),
        puts_("puts_max", options.puts_max),
        stalls_(options.client) {
    using Handler = grpc::internal::ClientStreamingHandler<Handlers, grpc::ByteBuffer, v1::PutDone>;
    const auto put = [](Handlers* self, grpc::ServerContext* context, Stream* stream,
                        v1::PutDone*) {
      return ToGrpc(self->refusals_.Note(self->Put(context, stream)));
    };
    AddMethod(NewWatchedMethod<Handler>(
        "/annulus.v1.Data/Put", grpc::internal::RpcMethod::CLIENT_STREAMING, &ends_, this, put));
  }

  uint64_t bytes_received() const { return bytes_received_.load(); }
  int64_t uploads() const { return puts_.count(); }
  const Refusals& refusals() const { return refusals_; }

 private:
  using Stream = grpc::ServerReader<grpc::ByteBuffer>;

  absl::Status Put(grpc::ServerContext* context, Stream* stream) {
    Caller caller;
    caller.client = context->peer();
    if (door_ != nullptr) {
      ANNULUS_ASSIGN_OR_RETURN(caller, door_->Admit(*context, "Put", Access::kWrite));
    }
    Places::Place place(&puts_);
    const std::string peer = PeerOf(caller);
    ANNULUS_RETURN_IF_ERROR(place.Take(context, peer));
    ClientPace pace(&stalls_, context);
    v1::PutPart part;
    if (!ReadPart(&pace, stream, &part) || !part.has_header()) {
      return absl::InvalidArgumentError("header: none; expected it as the first message");
    }
    // What waits for bytes that must not be stored any more need not wait.
    ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<GrantTable::Upload> upload,
                             grants_->Claim(part.header().grant(), part.header().secret(), peer,
                                            kGrantWait, [context] { context->TryCancel(); }));
    if (!place.SetBusy(true)) return absl::CancelledError("others needed the upload's place");
    context->AddInitialMetadata(kClaimedKey, "1");
    stream->SendInitialMetadata();
    grpc::ByteBuffer message;
    while (pace.Wait(message, [&] { return stream->Read(&message); })) {
      const std::vector<grpc::Slice> data = BytesOf(message, v1::PutPart::kDataFieldNumber);
      if (data.empty()) {
        return absl::InvalidArgumentError("data: none; expected some in every later message");
      }
      for (const grpc::Slice& slice : data) {
        const auto* bytes = reinterpret_cast<const char*>(slice.begin());
        ANNULUS_RETURN_IF_ERROR(upload->Add({bytes, slice.size()}));
        bytes_received_ += slice.size();
      }
    }
    return upload->Finish();
  }

  GrantTable* const grants_;
  Door* const door_;
  Places puts_;
  StallWatch stalls_;
  CallEnds ends_{&stalls_};
  Refusals refusals_;
  std::atomic<uint64_t> bytes_received_ = 0;
};

class GrpcDataServer final : public DataServer {
 public:
  explicit GrpcDataServer(const DataServerOptions& options) : handlers_(options) {}

  ~GrpcDataServer() override {
    if (acceptor_ != nullptr) acceptor_->Stop();
    if (server_ != nullptr) server_->Shutdown(absl::ToChronoTime(absl::InfinitePast()));
  }

  absl::Status Listen(const DataServerOptions& options) {
    ANNULUS_ASSIGN_OR_RETURN(acceptor_,
                             Acceptor::Listen(options.listen, options.connections, options.counts));
    grpc::ServerBuilder builder;
    SetUpServer({.name = "annulus data",
                 .transport_bytes_max = kTransportBytesMax,
                 .threads_max = options.puts_max + kSpareThreads},
                &builder);
    ANNULUS_ASSIGN_OR_RETURN(tls_, TlsFiles::Open(options.tls));
    acceptor_->AddTo(&builder, *tls_);
    builder.RegisterService(&handlers_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return absl::InternalError("gRPC starts no server");
    acceptor_->Start();
    address_ =
        absl::StrCat(options.tls.on() ? kTlsScheme : "",
                     options.listen.substr(0, options.listen.rfind(':')), ":", acceptor_->port());
    return absl::OkStatus();
  }

  std::string address() const override { return address_; }
  uint64_t bytes_received() const override { return handlers_.bytes_received(); }
  int64_t uploads() const override { return handlers_.uploads(); }
  const Refusals& refusals() const override { return handlers_.refusals(); }
  TlsFiles::Reading tls() const override { return tls_->reading(); }
  bool Answers(absl::Duration patience) override { return acceptor_->Answers(patience); }

 private:
  Handlers handlers_;
  std::unique_ptr<Acceptor> acceptor_;
  std::unique_ptr<TlsFiles> tls_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DataServer>> DataServer::Start(const DataServerOptions& options) {
  ANNULUS_RETURN_IF_ERROR(CheckHostPort("data-listen", options.listen));
  if (options.puts_max < 1 || options.puts_max > kPutsLimit) {
    return absl::InvalidArgumentError(
        absl::StrCat("puts_max: ", options.puts_max, "; expected 1 to ", kPutsLimit));
  }
  ANNULUS_RETURN_IF_ERROR(CheckLimits(options.client));
  auto server = std::make_unique<GrpcDataServer>(options);
  ANNULUS_RETURN_IF_ERROR(server->Listen(options));
  return server;
}

}  // namespace annulus
