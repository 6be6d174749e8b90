// The contract's suite over NCCL: ranks are threads of this process, each with a GPU of its own,
// and their control exchanges are local. Skipped by name where there are fewer GPUs than ranks.
#include <barrier>
#include <thread>

#include "absl/time/clock.h"
#include "comm/local/local_exchange.h"
#include "comm/local/local_rendezvous.h"
#include "comm/nccl/nccl_exchange.h"
#include "tests/comm/exchange_group.h"
#include "tests/nccl/staged_exchange.h"

namespace annulus {
namespace {

int Gpus() {
  int gpus = 0;
  return cudaGetDeviceCount(&gpus) == cudaSuccess ? gpus : 0;
}

class Gpu final : public ExchangeGroup {
 public:
  explicit Gpu(int world) : exchanges_(MakeLocalExchanges(world)), barrier_(world) {}

  void Run(const std::function<absl::Status(Exchange&)>& body) override {
    std::vector<absl::Status> statuses(exchanges_.size());
    std::vector<std::thread> threads;
    for (size_t rank = 0; rank < exchanges_.size(); ++rank) {
      threads.emplace_back([&, rank] {
        statuses[rank] = RunRank(rank, body);
        if (!statuses[rank].ok()) barrier_.arrive_and_drop();  // the others must not wait for it
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (size_t rank = 0; rank < statuses.size(); ++rank) {
      INFO("rank " << rank << ": " << statuses[rank]);
      CHECK(statuses[rank].ok());
    }
  }
  void Barrier() override { barrier_.arrive_and_wait(); }
  absl::StatusOr<std::unique_ptr<Exchange>> Open(int, uint64_t) override {
    return absl::UnimplementedError("NCCL's ranks open together");
  }
  Rendezvous& rendezvous() override { return rendezvous_; }

 private:
  absl::Status RunRank(size_t rank, const std::function<absl::Status(Exchange&)>& body) {
    ANNULUS_RETURN_IF_ERROR(cuda::StatusOf(cudaSetDevice(static_cast<int>(rank)), "cudaSetDevice"));
    ANNULUS_ASSIGN_OR_RETURN(
        std::unique_ptr<Exchange> exchange,
        OpenNcclExchange(std::move(exchanges_[rank]), absl::Now() + absl::Minutes(1)));
    test::StagedExchange staged(std::move(exchange));
    return body(staged);
  }

  std::vector<std::unique_ptr<Exchange>> exchanges_;
  LocalRendezvous rendezvous_;
  std::barrier<> barrier_;
};

}  // namespace

std::vector<std::string> ExchangeKinds(bool) {
  return {"nccl"};
}

std::unique_ptr<ExchangeGroup> MakeExchangeGroup(const std::string&, int world) {
  if (world <= Gpus()) return std::make_unique<Gpu>(world);
  WARN("skipped: " << world << " ranks need as many GPUs, " << Gpus() << " are found");
  return nullptr;
}

}  // namespace annulus
