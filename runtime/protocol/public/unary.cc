#include "runtime/protocol/public/unary.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/impl/client_unary_call.h>
#include <grpcpp/impl/rpc_method.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/method_handler.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace annulus {
namespace {

grpc::ByteBuffer BufferOf(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace

grpc::Status BytesOf(const grpc::ByteBuffer& buffer, std::string* bytes) {
  std::vector<grpc::Slice> slices;
  if (const grpc::Status status = buffer.Dump(&slices); !status.ok()) return status;
  bytes->clear();
  bytes->reserve(buffer.Length());
  for (const grpc::Slice& slice : slices) {
    bytes->append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return grpc::Status::OK;
}

std::string PathOf(absl::string_view call) {
  return absl::StrCat("/annulus.v1.Annulus/", call);
}

grpc::Status CallUnary(grpc::Channel* channel, const std::string& path, grpc::ClientContext* rpc,
                       const std::string& request, std::string* reply) {
  const grpc::internal::RpcMethod method(path.c_str(), grpc::internal::RpcMethod::NORMAL_RPC);
  grpc::ByteBuffer answer;
  grpc::Status status =
      grpc::internal::BlockingUnaryCall(channel, method, rpc, BufferOf(request), &answer);
  return status.ok() ? BytesOf(answer, reply) : status;
}

grpc::internal::MethodHandler* NewUnaryHandler(UnaryHandler handler) {
  using Handler =
      grpc::internal::RpcMethodHandler<grpc::Service, grpc::ByteBuffer, grpc::ByteBuffer>;
  const auto answer = [handler = std::move(handler)](grpc::Service*, grpc::ServerContext* rpc,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* reply) {
    std::string bytes, answered;
    grpc::Status status = BytesOf(*request, &bytes);
    if (status.ok()) status = handler(rpc, bytes, &answered);
    if (status.ok()) *reply = BufferOf(answered);
    return status;
  };
  return new Handler(answer, nullptr);
}

}  // namespace annulus
