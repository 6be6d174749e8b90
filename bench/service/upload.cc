#include "bench/service/upload.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/rng.h"
#include "base/status.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/protocol/public/data.grpc.pb.h"
#include "runtime/protocol/public/tls_files.h"

namespace annulus {
namespace {

constexpr int kWarmUps = 1;  // memory is touched for the first time
constexpr int kKvHeads = 8;
constexpr int kDim = 128;

class Sink final : public v1::Data::Service {
 public:
  grpc::Status Put(grpc::ServerContext*, grpc::ServerReader<v1::PutPart>* stream,
                   v1::PutDone*) override {
    v1::PutPart part;
    while (stream->Read(&part)) {
    }
    return grpc::Status::OK;
  }
};

// A server over loopback that drops what it gets, and a client of it.
class BareStream {
 public:
  static absl::StatusOr<std::unique_ptr<BareStream>> Start(const ServerTls& tls,
                                                           const std::string& ca) {
    auto stream = std::make_unique<BareStream>();
    grpc::ServerBuilder builder;
    int port = 0;
    ANNULUS_ASSIGN_OR_RETURN(const auto files, TlsFiles::Open(tls));
    ANNULUS_ASSIGN_OR_RETURN(const auto trusted, TlsFiles::Open(ClientTls{.ca = ca}));
    builder.AddListeningPort("127.0.0.1:0", files->ServerCredentials(), &port);
    builder.RegisterService(&stream->sink_);
    stream->server_ = builder.BuildAndStart();
    if (stream->server_ == nullptr) return absl::UnavailableError("cannot listen on 127.0.0.1");
    stream->channel_ = MakeChannel(absl::StrCat("127.0.0.1:", port), trusted->ChannelCredentials());
    return stream;
  }

  // Returns the seconds that it took.
  absl::StatusOr<double> Send(int64_t bytes) {
    const int64_t chunk_bytes = ClientOptions().chunk_bytes;
    grpc::ClientContext rpc;
    const absl::Time begin = absl::Now();
    v1::PutPart part;
    v1::PutDone done;
    const auto stub = v1::Data::NewStub(channel_);
    const auto stream = stub->Put(&rpc, &done);
    for (bool open = true; open && bytes > 0; bytes -= chunk_bytes) {
      part.mutable_data()->resize(static_cast<size_t>(std::min(bytes, chunk_bytes)), 'x');
      open = stream->Write(part);
    }
    stream->WritesDone();
    ANNULUS_RETURN_IF_ERROR(FromGrpc(stream->Finish()));
    return absl::ToDoubleSeconds(absl::Now() - begin);
  }

 private:
  Sink sink_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

// Returns the seconds that the append took.
absl::StatusOr<double> Append(Client& client, const Tensor& values) {
  ContextSpec spec;
  spec.heads = spec.kv_heads = kKvHeads;
  spec.head_dim = spec.v_head_dim = kDim;
  ANNULUS_ASSIGN_OR_RETURN(const ContextInfo context, client.CreateContext(spec));
  AppendRequest request;
  request.context = context.id;
  request.k = request.v = values;
  const absl::Time begin = absl::Now();
  ANNULUS_RETURN_IF_ERROR(client.Append(request).status());
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begin);
  ANNULUS_RETURN_IF_ERROR(client.Release(context.id));
  return seconds;
}

Tensor RandomValues(int64_t tokens) {
  Tensor values(DType::kBF16, tokens, kKvHeads, kDim);
  Rng rng(1);
  auto* bits = reinterpret_cast<uint16_t*>(values.data());
  for (int64_t i = 0; i < tokens * kKvHeads * kDim; ++i)
    bits[i] = F32ToBF16(static_cast<float>(rng.Uniform()));
  return values;
}

}  // namespace

absl::StatusOr<std::vector<Samples>> MeasureUploads(const std::vector<Client*>& clients,
                                                    int64_t bytes, int rounds, const ServerTls& tls,
                                                    const std::string& ca) {
  ANNULUS_ASSIGN_OR_RETURN(const auto bare, BareStream::Start(tls, ca));
  const Tensor values =
      RandomValues(bytes / (2 * kKvHeads * kDim * static_cast<int64_t>(sizeof(uint16_t))));
  std::vector<std::vector<double>> seconds(1 + clients.size());
  for (int round = -kWarmUps; round < rounds; ++round) {
    for (size_t i = 0; i < seconds.size(); ++i) {
      ANNULUS_ASSIGN_OR_RETURN(const double took,
                               i == 0 ? bare->Send(bytes) : Append(*clients[i - 1], values));
      if (round >= 0) seconds[i].push_back(took);
    }
  }
  return std::vector<Samples>(seconds.begin(), seconds.end());
}

}  // namespace annulus
