// The service as its processes run it, within one process: a coordinator and workers over UCX's
// TCP, the coordinator's gRPC server and a client of it over loopback. Contexts are small and full
// of random KV. Not thread-safe.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "annulus/client.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/server/data_server.h"
#include "runtime/server/server.h"
#include "runtime/worker/grants.h"
#include "runtime/worker/worker.h"

namespace annulus {

struct ServiceShape {
  int heads = 32;
  int kv_heads = 8;
  int dim = 128;
  DType dtype = DType::kBF16;
  int64_t tokens = 256;
  int contexts = 1;
  int workers = 1;  // that share the cores
  PartitionSpec partition = ContextSpec().partition;
  ServerTls tls = {};       // of the coordinator's server and of the data ports
  std::string tls_ca = {};  // that the client trusts

  int64_t q_bytes() const { return int64_t{heads} * dim * 2; }            // one query, bf16
  int64_t reply_bytes() const { return int64_t{heads} * (dim + 1) * 4; }  // out and lse, f32
  int64_t kv_bytes() const { return int64_t{2} * kv_heads * dim * 2; }    // one token, bf16
};

class ServiceCluster {
 public:
  static constexpr int64_t kKvBytesLimit = int64_t{4} << 30;  // of each worker

  static absl::StatusOr<std::unique_ptr<ServiceCluster>> Start(const ServiceShape& shape);

  Client& client() { return *client_; }
  std::string endpoint() const;
  Service& service() { return *coordinator_; }
  Coordinator& coordinator() { return *coordinator_; }

  // One query at the end of context `i`, as an Attend and as a Step.
  AttendRequest Attend(int i) const;
  StepRequest Query(int i) const;
  // The same with one more token appended; steps must be taken in order.
  StepRequest AppendAndQuery(int i);

 private:
  explicit ServiceCluster(const ServiceShape& shape);
  absl::Status Connect();
  absl::Status AddWorker(int threads);
  absl::Status Fill();
  TensorView Rows(int64_t tokens, int64_t heads) const;

  const ServiceShape shape_;
  Tensor values_;  // what every tensor's rows come from
  std::unique_ptr<Coordinator> coordinator_;
  struct OneWorker {
    GrantTable grants{int64_t{256} << 20};
    std::unique_ptr<DataServer> data;
    std::unique_ptr<Worker> worker;
  };
  std::vector<std::unique_ptr<OneWorker>> workers_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<Client> client_;
  std::vector<ContextId> contexts_;
  std::vector<int64_t> tokens_;  // of each context
};

}  // namespace annulus
