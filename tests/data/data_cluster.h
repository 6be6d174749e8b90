// A coordinator behind a gRPC server, workers with data ports and a client, all in this process:
// the messages among coordinator and workers go over memory, everything of the client's over
// loopback.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/client.h"
#include "base/check.h"
#include "base/log.h"
#include "comm/local/local_network.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/server/data_server.h"
#include "runtime/server/server.h"
#include "runtime/worker/grants.h"
#include "runtime/worker/worker.h"

namespace annulus::test {

struct DataClusterOptions {
  int workers = 1;
  int64_t kv_bytes_limit = int64_t{1} << 30;
  int64_t upload_bytes_max = int64_t{256} << 20;
  int data_puts_max = 128;
  std::string data_address = "";  // what the last worker says instead of its own; "-": nothing
  RetryOptions retry = {};
  ServerTls tls = {};       // of the coordinator's server
  ServerTls data_tls = {};  // of the data ports
  Door* data_door = nullptr;
  std::string tls_ca = {};  // of the client
  std::string token_file = {};
  CoordinatorLimits limits = {};
};

class DataCluster {
 public:
  explicit DataCluster(const DataClusterOptions& options) {
    SetLogLevel(LogLevel::kOff);
    CoordinatorOptions coordinator;
    coordinator.fabric = network_.MakeFabric("coordinator").value();
    coordinator.limits = options.limits;
    coordinator_ = Coordinator::Start(std::move(coordinator)).value();
    for (int i = 0; i < options.workers; ++i) {
      Port& port = ports_.emplace_back();
      port.grants = std::make_unique<GrantTable>(options.upload_bytes_max);
      port.server = DataServer::Start({.listen = "127.0.0.1:0",
                                       .grants = port.grants.get(),
                                       .tls = options.data_tls,
                                       .door = options.data_door,
                                       .puts_max = options.data_puts_max})
                        .value();
      WorkerOptions worker;
      worker.name = absl::StrCat("w", i);
      worker.fabric = network_.MakeFabric(worker.name).value();
      worker.coordinator_address = coordinator_->fabric_address();
      worker.backend = MakeBackend("cpu", 1).value();
      worker.kv_bytes_limit = options.kv_bytes_limit;
      worker.data_address = port.server->address();
      worker.grants = port.grants.get();
      if (i + 1 == options.workers && !options.data_address.empty()) {
        worker.data_address = options.data_address == "-" ? "" : options.data_address;
      }
      port.worker = Worker::Start(std::move(worker)).value();
      ANNULUS_CHECK(port.worker->WaitUntilJoined(absl::Now() + absl::Seconds(20)).ok());
    }
    server_ = RpcServer::Start({.service = coordinator_.get(), .tls = options.tls}).value();
    tls_ca_ = options.tls_ca;
    token_file_ = options.token_file;
    client_ = Connect(Upload::kDirect, options.retry);
  }

  std::unique_ptr<Client> Connect(Upload upload, const RetryOptions& retry = {}) const {
    return Client::Connect({.endpoint = endpoint(),
                            .upload = upload,
                            .retry = retry,
                            .tls_ca = tls_ca_,
                            .token_file = token_file_})
        .value();
  }
  std::string endpoint() const { return absl::StrCat("127.0.0.1:", server_->port()); }
  Client& client() { return *client_; }
  Service& service() { return *coordinator_; }
  GrantTable& grants(int i) { return *ports_[static_cast<size_t>(i)].grants; }
  DataServer& data(int i) { return *ports_[static_cast<size_t>(i)].server; }
  uint64_t bytes_uploaded() const {
    uint64_t bytes = 0;
    for (const Port& port : ports_) bytes += port.server->bytes_received();
    return bytes;
  }

 private:
  struct Port {
    std::unique_ptr<GrantTable> grants;
    std::unique_ptr<DataServer> server;
    std::unique_ptr<Worker> worker;
  };

  LocalNetwork network_;
  std::unique_ptr<Coordinator> coordinator_;
  std::vector<Port> ports_;
  std::unique_ptr<RpcServer> server_;
  std::string tls_ca_;
  std::string token_file_;
  std::unique_ptr<Client> client_;
};

}  // namespace annulus::test
