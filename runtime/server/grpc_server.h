// How the gRPC servers of this project are set up alike, whatever they serve.
#pragma once

#include <cstdint>
#include <string>

namespace grpc {
class ServerBuilder;
}  // namespace grpc

namespace annulus {

struct GrpcServerSetUp {
  std::string name;                 // of its resources
  int64_t transport_bytes_max = 0;  // of gRPC's own buffers, all connections
  int threads_max = 0;
  // Callers may ask which services there are, each question on a stream that holds a thread.
  bool reflection = false;
};

void SetUpServer(const GrpcServerSetUp& set_up, grpc::ServerBuilder* builder);

}  // namespace annulus
