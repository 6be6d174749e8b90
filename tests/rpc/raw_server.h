// A real server over loopback to a fake service, for clients that no library is.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/protocol/public/annulus.grpc.pb.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/server/server.h"
#include "tests/catch.h"
#include "tests/rpc/fake_service.h"

namespace annulus {

// Sends the messages as an Attend and gives the status it ends with.
inline grpc::Status AttendBy(v1::Annulus::Stub& stub, grpc::ClientContext* context,
                             const std::vector<v1::AttendPart>& parts) {
  const auto stream = stub.Attend(context);
  for (const v1::AttendPart& part : parts) {
    if (!stream->Write(part)) break;
  }
  stream->WritesDone();
  v1::AttendReplyPart reply;
  while (stream->Read(&reply)) {
  }
  return stream->Finish();
}

struct RawServer {
  explicit RawServer(RpcLimits limits = {}, bool reflection = false) {
    SilenceLibraries();
    auto started =
        RpcServer::Start({.service = &service, .limits = limits, .reflection = reflection});
    INFO(started.status());
    REQUIRE(started.ok());
    server = *std::move(started);
    channel = MakeChannel(endpoint());
    stub = v1::Annulus::NewStub(channel);
  }
  std::string endpoint() const { return absl::StrCat("127.0.0.1:", server->port()); }

  grpc::Status Attend(const std::vector<v1::AttendPart>& parts) const {
    grpc::ClientContext context;
    return AttendBy(*stub, &context, parts);
  }

  FakeService service;
  std::unique_ptr<RpcServer> server;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Annulus::Stub> stub;
};

inline v1::AttendPart Header(const char* dtype, int64_t tokens, int64_t heads, int64_t dim) {
  v1::AttendPart part;
  v1::TensorShape* q = part.mutable_header()->mutable_q();
  q->set_dtype(dtype);
  q->set_tokens(tokens);
  q->set_heads(heads);
  q->set_dim(dim);
  return part;
}

inline v1::AttendPart Data(size_t bytes) {
  v1::AttendPart part;
  part.set_data(std::string(bytes, 'x'));
  return part;
}

}  // namespace annulus
