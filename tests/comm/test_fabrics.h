// The transports under test, alike: fabrics of one kind, and a way to let time pass for them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "comm/fabric.h"
#include "comm/local/local_network.h"
#include "comm/ucx/ucx_fabric.h"
#include "tests/catch.h"

namespace annulus {

// "local", "simulated", "ucx tcp", "ucx shm,tcp".
class TestFabrics {
 public:
  explicit TestFabrics(std::string kind, size_t queue_bytes_max = size_t{256} << 20)
      : kind_(std::move(kind)), queue_bytes_max_(queue_bytes_max) {
    if (kind_ == "local" || kind_ == "simulated") {
      LocalNetworkOptions options;
      options.queue_bytes_max = queue_bytes_max;
      if (kind_ == "simulated") options.simulation.emplace();
      network_ = std::make_unique<LocalNetwork>(options);
    }
  }

  bool simulated() const { return kind_ == "simulated"; }

  std::unique_ptr<Fabric> Make() {
    if (network_ != nullptr) {
      auto fabric = network_->MakeFabric("node" + std::to_string(++made_));
      REQUIRE(fabric.ok());
      return *std::move(fabric);
    }
    UcxOptions options;
    options.transports = kind_.substr(4);
    options.queue_bytes_max = queue_bytes_max_;
    auto fabric = UcxFabric::Create(options);
    INFO(fabric.status().ToString());
    REQUIRE(fabric.ok());
    return *std::move(fabric);
  }

  // Polls the messengers in turn until `done`, at most for `limit`.
  bool PollUntil(const std::vector<Messenger*>& messengers, const std::function<bool()>& done,
                 absl::Duration limit = absl::Seconds(20)) {
    const absl::Time end = absl::Now() + limit;
    while (!done()) {
      if (absl::Now() > end) return false;
      if (simulated() && !network_->Step()) return done();
      for (Messenger* messenger : messengers) messenger->Poll(absl::Microseconds(200));
    }
    return true;
  }

 private:
  const std::string kind_;
  const size_t queue_bytes_max_;
  std::unique_ptr<LocalNetwork> network_;
  int made_ = 0;
};

// A fabric whose messenger remembers what it was told.
struct TestNode {
  explicit TestNode(TestFabrics& fabrics) : fabric(fabrics.Make()) {
    fabric->messenger().SetDoor(PeerDoor::kOpen);
    fabric->messenger().SetHandlers({[this](PeerId from, Message message) {
                                       messages.push_back({from, std::move(message)});
                                       if (on_message) on_message(from);
                                     },
                                     [this](PeerId peer, absl::Status why) {
                                       downs.push_back({peer, std::move(why)});
                                     }});
  }

  Messenger& messenger() { return fabric->messenger(); }

  std::unique_ptr<Fabric> fabric;
  std::vector<std::pair<PeerId, Message>> messages;
  std::vector<std::pair<PeerId, absl::Status>> downs;
  std::function<void(PeerId)> on_message;
};

}  // namespace annulus
