#include "runtime/client/put.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "annulus/retry_hint.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/protocol/public/data.grpc.pb.h"

namespace annulus {
namespace {

// Until an upload's place may be had again.
constexpr absl::Duration kPlaceWait = absl::Milliseconds(100);

}  // namespace

absl::Status PutUpload(const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext* rpc,
                       uint64_t grant, absl::string_view secret, const NextBytes& next) {
  v1::PutPart part;
  part.mutable_header()->set_grant(grant);
  part.mutable_header()->set_secret(secret.data(), secret.size());
  v1::PutDone result;
  const auto stub = v1::Data::NewStub(channel);
  const auto stream = stub->Put(rpc, &result);
  bool open = stream->Write(part);
  while (open && next(part.mutable_data())) open = stream->Write(part);
  if (open) stream->WritesDone();
  const absl::Status status = FromGrpc(stream->Finish());
  if (!absl::IsCancelled(status) || rpc->GetServerInitialMetadata().count(kClaimedKey) > 0) {
    return status;
  }
  return WithRetryAfter(
      absl::ResourceExhaustedError("others needed the upload's place before it began"), kPlaceWait);
}

}  // namespace annulus
