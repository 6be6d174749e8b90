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
#include "runtime/client/put.h"
#include "runtime/protocol/public/channel.h"
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

}  // namespace

absl::StatusOr<Samples> MeasureGrpcStream(int64_t bytes, int rounds, const ServerTls& tls,
                                          const std::string& ca) {
  Sink sink;
  grpc::ServerBuilder builder;
  int port = 0;
  ANNULUS_ASSIGN_OR_RETURN(const auto files, TlsFiles::Open(tls));
  ANNULUS_ASSIGN_OR_RETURN(const auto trusted, TlsFiles::Open(ClientTls{.ca = ca}));
  builder.AddListeningPort("127.0.0.1:0", files->ServerCredentials(), &port);
  builder.RegisterService(&sink);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return absl::UnavailableError("cannot listen on 127.0.0.1");
  const auto channel = MakeChannel(absl::StrCat("127.0.0.1:", port), trusted->ChannelCredentials());
  const int64_t chunk_bytes = ClientOptions().chunk_bytes;
  absl::Status failed;
  const Samples samples = Samples::Of(
      rounds,
      [&] {
        grpc::ClientContext rpc;
        int64_t left = bytes;
        failed.Update(PutUpload(channel, &rpc, 0, "", [&](std::string* data) {
          if (left <= 0) return false;
          data->resize(static_cast<size_t>(std::min(left, chunk_bytes)), 'x');
          left -= chunk_bytes;
          return true;
        }));
      },
      kWarmUps);
  ANNULUS_RETURN_IF_ERROR(failed);
  return samples;
}

absl::StatusOr<Samples> MeasureUpload(Client& client, int64_t bytes, int rounds) {
  ContextSpec spec;
  spec.heads = spec.kv_heads = kKvHeads;
  spec.head_dim = spec.v_head_dim = kDim;
  const int64_t tokens = bytes / (2 * kKvHeads * kDim * static_cast<int64_t>(sizeof(uint16_t)));
  Tensor values(DType::kBF16, tokens, kKvHeads, kDim);
  Rng rng(1);
  auto* bits = reinterpret_cast<uint16_t*>(values.data());
  for (int64_t i = 0; i < tokens * kKvHeads * kDim; ++i)
    bits[i] = F32ToBF16(static_cast<float>(rng.Uniform()));
  AppendRequest request;
  request.k = request.v = values;
  std::vector<double> seconds;
  for (int i = -kWarmUps; i < rounds; ++i) {
    ANNULUS_ASSIGN_OR_RETURN(const ContextInfo context, client.CreateContext(spec));
    request.context = context.id;
    const absl::Time begin = absl::Now();
    ANNULUS_RETURN_IF_ERROR(client.Append(request).status());
    if (i >= 0) seconds.push_back(absl::ToDoubleSeconds(absl::Now() - begin));
    ANNULUS_RETURN_IF_ERROR(client.Release(context.id));
  }
  return Samples(std::move(seconds));
}

}  // namespace annulus
