// A world of exchanges under test in this process, one for each rank, and threads to run them in.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "comm/local/local_exchange.h"
#include "comm/progress_thread.h"
#include "tests/comm/exchange_group.h"
#include "tests/comm/test_fabrics.h"

namespace annulus {

// "threads" is MakeLocalExchanges; the others are those of TestFabrics.
class TestGroup {
 public:
  TestGroup(const std::string& kind, int world) : fabrics_(kind) {
    if (kind == "threads") {
      exchanges = MakeLocalExchanges(world);
      return;
    }
    for (int rank = 0; rank < world; ++rank) {
      nodes.push_back(std::make_unique<TestNode>(fabrics_));
      addresses.push_back(nodes.back()->messenger().address());
      progress.push_back(std::make_unique<ProgressThread>(nodes.back()->messenger()));
    }
    for (int rank = 0; rank < world; ++rank) Open(rank, kChannel);
  }
  ~TestGroup() {
    exchanges.clear();
    progress.clear();
  }

  void Open(int rank, uint64_t channel) {
    auto exchange = nodes[rank]->fabric->OpenExchange(channel, rank, addresses);
    INFO(exchange.status().ToString());
    REQUIRE(exchange.ok());
    exchanges.push_back(*std::move(exchange));
  }

  // The rank's process ends.
  void Kill(int rank) {
    progress[rank].reset();
    exchanges[rank].reset();
    nodes[rank].reset();
  }

  // Runs `body` for each rank in a thread of its own; all must succeed.
  void Run(const std::function<absl::Status(Exchange&)>& body) {
    std::vector<absl::Status> statuses(exchanges.size());
    std::vector<std::thread> threads;
    for (size_t rank = 0; rank < exchanges.size(); ++rank) {
      threads.emplace_back([&, rank] { statuses[rank] = body(*exchanges[rank]); });
    }
    for (std::thread& thread : threads) thread.join();
    for (size_t rank = 0; rank < statuses.size(); ++rank) {
      INFO("rank " << rank << ": " << statuses[rank]);
      CHECK(statuses[rank].ok());
    }
  }

  static constexpr uint64_t kChannel = 77;

 private:
  TestFabrics fabrics_;

 public:
  std::vector<std::unique_ptr<TestNode>> nodes;
  std::vector<std::string> addresses;
  std::vector<std::unique_ptr<ProgressThread>> progress;
  std::vector<std::unique_ptr<Exchange>> exchanges;
};

}  // namespace annulus
