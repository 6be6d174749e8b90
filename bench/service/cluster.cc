#include "bench/service/cluster.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/ucx/ucx_fabric.h"

namespace annulus {

ServiceCluster::ServiceCluster(const ServiceShape& shape)
    : shape_(shape),
      values_(shape.dtype, shape.tokens, std::max(shape.heads, shape.kv_heads), shape.dim) {
  Rng rng(1);
  std::vector<float> row(static_cast<size_t>(shape.dim));
  const TensorView view = values_.view();
  for (int64_t r = 0; r < view.tokens * view.heads; ++r) {
    for (float& value : row) value = rng.Normal();
    Convert(row.data(), DType::kF32, values_.data() + r * view.dim * SizeOf(shape.dtype),
            shape.dtype, view.dim);
  }
}

TensorView ServiceCluster::Rows(int64_t tokens, int64_t heads) const {
  return TensorView::Contiguous(values_.data(), shape_.dtype, tokens, heads, shape_.dim);
}

absl::StatusOr<std::unique_ptr<ServiceCluster>> ServiceCluster::Start(const ServiceShape& shape) {
  auto cluster = std::unique_ptr<ServiceCluster>(new ServiceCluster(shape));
  ANNULUS_RETURN_IF_ERROR(cluster->Connect());
  ANNULUS_RETURN_IF_ERROR(cluster->Fill());
  return cluster;
}

std::string ServiceCluster::endpoint() const {
  return absl::StrCat("127.0.0.1:", server_->port());
}

absl::Status ServiceCluster::AddWorker(int threads) {
  WorkerOptions options;
  ANNULUS_ASSIGN_OR_RETURN(options.fabric, UcxFabric::Create());
  options.coordinator_address = coordinator_->fabric_address();
  options.name = "bench";
  ANNULUS_ASSIGN_OR_RETURN(options.backend, MakeBackend("cpu", threads));
  options.kv_bytes_limit = kKvBytesLimit;
  workers_.push_back(std::make_unique<OneWorker>());
  OneWorker& one = *workers_.back();
  ANNULUS_ASSIGN_OR_RETURN(
      one.data,
      DataServer::Start({.listen = "127.0.0.1:0", .grants = &one.grants, .tls = shape_.tls}));
  options.data_address = one.data->address();
  options.grants = &one.grants;
  ANNULUS_ASSIGN_OR_RETURN(one.worker, Worker::Start(std::move(options)));
  return one.worker->WaitUntilJoined(absl::Now() + absl::Seconds(20));
}

absl::Status ServiceCluster::Connect() {
  SetLogLevel(LogLevel::kWarning);
  CoordinatorOptions coordinator;
  ANNULUS_ASSIGN_OR_RETURN(coordinator.fabric, UcxFabric::Create());
  ANNULUS_ASSIGN_OR_RETURN(coordinator_, Coordinator::Start(std::move(coordinator)));
  // As `annulus up` shares them out.
  const int threads =
      shape_.workers == 1 ? 0 : std::max(1, ThreadPool(0).threads() / shape_.workers);
  for (int i = 0; i < shape_.workers; ++i) ANNULUS_RETURN_IF_ERROR(AddWorker(threads));
  RpcServerOptions server;
  server.service = coordinator_.get();
  server.tls = shape_.tls;
  ANNULUS_ASSIGN_OR_RETURN(server_, RpcServer::Start(server));
  ANNULUS_ASSIGN_OR_RETURN(client_,
                           Client::Connect({.endpoint = endpoint(), .tls_ca = shape_.tls_ca}));
  return absl::OkStatus();
}

absl::Status ServiceCluster::Fill() {
  ContextSpec spec;
  spec.heads = shape_.heads;
  spec.kv_heads = shape_.kv_heads;
  spec.head_dim = spec.v_head_dim = shape_.dim;
  spec.dtype = shape_.dtype;
  spec.partition = shape_.partition;
  for (int i = 0; i < shape_.contexts; ++i) {
    ANNULUS_ASSIGN_OR_RETURN(const ContextInfo info, coordinator_->Call(spec, {}));
    AppendRequest request;
    request.context = info.id;
    request.k = request.v = Rows(shape_.tokens, shape_.kv_heads);
    ANNULUS_RETURN_IF_ERROR(coordinator_->Call(request, {}).status());
    contexts_.push_back(info.id);
    tokens_.push_back(shape_.tokens);
  }
  return absl::OkStatus();
}

AttendRequest ServiceCluster::Attend(int i) const {
  AttendRequest request;
  request.context = contexts_[i];
  request.kv_len = tokens_[i];
  request.q_start = tokens_[i] - 1;
  request.q = Rows(1, shape_.heads);
  return request;
}

StepRequest ServiceCluster::Query(int i) const {
  StepRequest request;
  request.context = contexts_[i];
  request.start = tokens_[i];
  request.q = Rows(1, shape_.heads);
  return request;
}

StepRequest ServiceCluster::AppendAndQuery(int i) {
  StepRequest request = Query(i);
  request.k = request.v = Rows(1, shape_.kv_heads);
  ++tokens_[i];
  return request;
}

}  // namespace annulus
