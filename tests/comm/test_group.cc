#include "tests/comm/test_group.h"

#include <barrier>

#include "comm/local/local_rendezvous.h"

namespace annulus {
namespace {

class Threads final : public ExchangeGroup {
 public:
  Threads(const std::string& kind, int world) : group_(kind, world), barrier_(world) {}

  void Run(const std::function<absl::Status(Exchange&)>& body) override {
    group_.Run([&](Exchange& exchange) {
      absl::Status status = body(exchange);
      if (!status.ok()) barrier_.arrive_and_drop();  // the others must not wait for it
      return status;
    });
  }
  void Barrier() override { barrier_.arrive_and_wait(); }
  absl::StatusOr<std::unique_ptr<Exchange>> Open(int rank, uint64_t channel) override {
    return group_.nodes[rank]->fabric->OpenExchange(channel, rank, group_.addresses);
  }
  Rendezvous& rendezvous() override { return rendezvous_; }

 private:
  LocalRendezvous rendezvous_;
  TestGroup group_;
  std::barrier<> barrier_;
};

}  // namespace

std::vector<std::string> ExchangeKinds(bool with_channels) {
  if (with_channels) return {"local", "ucx tcp", "ucx shm,tcp"};
  return {"threads", "local", "ucx tcp", "ucx shm,tcp"};
}

std::unique_ptr<ExchangeGroup> MakeExchangeGroup(const std::string& kind, int world) {
  return std::make_unique<Threads>(kind, world);
}

}  // namespace annulus
