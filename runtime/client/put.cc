#include "runtime/client/put.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include "runtime/protocol/public/convert.h"
#include "runtime/protocol/public/data.grpc.pb.h"

namespace annulus {

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
  return FromGrpc(stream->Finish());
}

}  // namespace annulus
