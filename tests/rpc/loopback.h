// A real server over loopback to a fake service, and a client of it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "annulus/client.h"
#include "base/rng.h"
#include "runtime/server/server.h"
#include "tests/catch.h"
#include "tests/rpc/fake_service.h"

namespace annulus {

struct Loopback {
  explicit Loopback(RpcLimits limits = {}, int64_t chunk_bytes = 1 << 20) {
    auto started = RpcServer::Start({.service = &service, .limits = limits});
    INFO(started.status());
    REQUIRE(started.ok());
    server = *std::move(started);
    client = Connect(chunk_bytes);
  }
  std::string endpoint() const { return absl::StrCat("127.0.0.1:", server->port()); }
  std::unique_ptr<Client> Connect(int64_t chunk_bytes) const {
    auto connected = Client::Connect(
        {.endpoint = endpoint(), .chunk_bytes = chunk_bytes, .upload = Upload::kRelay});
    INFO(connected.status());
    REQUIRE(connected.ok());
    return *std::move(connected);
  }

  FakeService service;
  std::unique_ptr<RpcServer> server;
  std::unique_ptr<Client> client;
};

inline std::vector<float> Ramp(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 1021) - 500.0f;
  return values;
}

}  // namespace annulus
