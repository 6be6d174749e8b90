#include "runtime/client/put.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/impl/rpc_method.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/sync_stream.h>

#include <array>
#include <utility>

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

// A PutPart with these bytes, which are not copied as protobuf's serialization would.
grpc::ByteBuffer PartWith(grpc::Slice bytes) {
  using google::protobuf::internal::WireFormatLite;
  using google::protobuf::io::CodedOutputStream;
  std::array<uint8_t, 16> head;
  uint8_t* end = CodedOutputStream::WriteTagToArray(
      WireFormatLite::MakeTag(v1::PutPart::kDataFieldNumber,
                              WireFormatLite::WIRETYPE_LENGTH_DELIMITED),
      head.data());
  end = CodedOutputStream::WriteVarint32ToArray(static_cast<uint32_t>(bytes.size()), end);
  const std::array<grpc::Slice, 2> slices = {
      grpc::Slice(head.data(), static_cast<size_t>(end - head.data())), std::move(bytes)};
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace

absl::Status PutUpload(const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext* rpc,
                       uint64_t grant, absl::string_view secret, const NextBytes& next) {
  v1::PutPart part;
  part.mutable_header()->set_grant(grant);
  part.mutable_header()->set_secret(secret.data(), secret.size());
  const grpc::Slice header(part.SerializeAsString());
  v1::PutDone result;
  const std::unique_ptr<grpc::ClientWriter<grpc::ByteBuffer>> stream(
      grpc::internal::ClientWriterFactory<grpc::ByteBuffer>::Create(
          channel.get(), {"/annulus.v1.Data/Put", grpc::internal::RpcMethod::CLIENT_STREAMING}, rpc,
          &result));
  bool open = stream->Write(grpc::ByteBuffer(&header, 1));
  while (open) {
    grpc::Slice bytes = next();
    if (bytes.size() == 0) break;
    open = stream->Write(PartWith(std::move(bytes)));
  }
  if (open) stream->WritesDone();
  const absl::Status status = FromGrpc(stream->Finish());
  if (!absl::IsCancelled(status) || rpc->GetServerInitialMetadata().count(kClaimedKey) > 0) {
    return status;
  }
  return WithRetryAfter(
      absl::ResourceExhaustedError("others needed the upload's place before it began"), kPlaceWait);
}

}  // namespace annulus
