#include "comm/local/local_network.h"

#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "comm/local/local_core.h"

namespace annulus {
namespace {

class LocalMessenger final : public Messenger {
 public:
  LocalMessenger(LocalCore& core, std::shared_ptr<LocalNode> node)
      : core_(core), node_(std::move(node)) {}

  void SetHandlers(Handlers handlers) override { node_->handlers = std::move(handlers); }
  std::string address() const override { return node_->address; }
  using Messenger::Connect;
  absl::StatusOr<PeerId> Connect(absl::string_view address, const LinkKey& key) override {
    return core_.Connect(node_, address, key);
  }
  void SetDoor(PeerDoor door) override { core_.SetDoor(*node_, door); }
  void AdmitKey(const LinkKey& key) override { core_.AdmitKey(*node_, key, true); }
  void DismissKey(const LinkKey& key) override { core_.AdmitKey(*node_, key, false); }
  absl::StatusOr<LinkKey> KeyOf(PeerId peer) const override { return core_.KeyOf(*node_, peer); }
  void Trust(PeerId peer) override { core_.Trust(*node_, peer); }
  absl::Status Send(PeerId peer, Message message) override {
    return core_.Send(*node_, peer, std::move(message));
  }
  void Disconnect(PeerId peer) override { core_.Disconnect(*node_, peer); }
  void Wait(absl::Duration wait) override { core_.Wait(*node_, wait); }
  int Deliver() override { return core_.Deliver(*node_); }
  void Wake() override { core_.Wake(*node_); }
  Counters counters() const override { return core_.counters(*node_); }

 private:
  LocalCore& core_;
  const std::shared_ptr<LocalNode> node_;
};

class LocalFabric final : public Fabric {
 public:
  LocalFabric(LocalCore& core, std::shared_ptr<LocalNode> node)
      : core_(core), node_(std::move(node)), messenger_(core, node_) {}
  ~LocalFabric() override { core_.Kill(*node_, "it was closed"); }

  Messenger& messenger() override { return messenger_; }
  absl::StatusOr<std::unique_ptr<Exchange>> OpenExchange(
      uint64_t channel, int rank, absl::Span<const std::string> addresses) override {
    return core_.OpenExchange(*node_, channel, rank, addresses);
  }

 private:
  LocalCore& core_;
  const std::shared_ptr<LocalNode> node_;
  LocalMessenger messenger_;
};

}  // namespace

LocalNetwork::LocalNetwork(LocalNetworkOptions options)
    : core_(std::make_unique<LocalCore>(std::move(options))) {}
LocalNetwork::~LocalNetwork() = default;

absl::StatusOr<std::unique_ptr<Fabric>> LocalNetwork::MakeFabric(absl::string_view name) {
  ANNULUS_ASSIGN_OR_RETURN(std::shared_ptr<LocalNode> node, core_->AddNode(name));
  return std::make_unique<LocalFabric>(*core_, std::move(node));
}

void LocalNetwork::Crash(absl::string_view fabric) {
  core_->Crash(fabric);
}
void LocalNetwork::Pause(absl::string_view fabric) {
  core_->SetPaused(fabric, true);
}
void LocalNetwork::Resume(absl::string_view fabric) {
  core_->SetPaused(fabric, false);
}
void LocalNetwork::Clog(absl::string_view from, absl::string_view to) {
  core_->SetClogged(from, to, true);
}
void LocalNetwork::Unclog(absl::string_view from, absl::string_view to) {
  core_->SetClogged(from, to, false);
}

const Clock& LocalNetwork::clock() const {
  return core_->clock();
}
void LocalNetwork::At(absl::Time when, std::function<void()> action) {
  core_->At(when, std::move(action));
}
bool LocalNetwork::Step() {
  return core_->Step(absl::InfiniteFuture());
}
void LocalNetwork::RunUntil(absl::Time when) {
  while (core_->Step(when)) {
  }
  core_->AdvanceTo(when);
}

// The simulated half of the core: its clock, its queue of events and its faults.

void LocalCore::SetPaused(absl::string_view address, bool paused) {
  ANNULUS_CHECK(simulated_);
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = living_.find(address);
  ANNULUS_CHECK(it != living_.end());
  it->second->paused = paused;
  events_.merge(held_);  // Step holds again what is still blocked
}

void LocalCore::SetClogged(absl::string_view from, absl::string_view to, bool clogged) {
  ANNULUS_CHECK(simulated_);
  std::lock_guard<std::mutex> lock(mutex_);
  const std::pair<std::string, std::string> way(from, to);
  if (clogged) {
    clogs_.insert(way);
  } else {
    clogs_.erase(way);
  }
  events_.merge(held_);
}

void LocalCore::At(absl::Time when, std::function<void()> action) {
  ANNULUS_CHECK(simulated_);
  std::lock_guard<std::mutex> lock(mutex_);
  LocalEvent event;
  event.action = std::move(action);
  events_.emplace(Key{std::max(when, clock_.now), ++last_event_}, std::move(event));
}

bool LocalCore::Blocked(const LocalEvent& event) const {
  if (event.link == nullptr) return false;
  const LocalLink::End& to = event.link->ends[event.to];
  const LocalLink::End& from = event.link->ends[1 - event.to];
  if (to.closed) return false;
  if (to.node->paused) return true;
  return from.node != nullptr && clogs_.count({from.node->address, to.node->address}) != 0;
}

bool LocalCore::Step(absl::Time until) {
  ANNULUS_CHECK(simulated_);
  std::unique_lock<std::mutex> lock(mutex_);
  while (!events_.empty() && events_.begin()->first.first <= until) {
    auto next = events_.extract(events_.begin());
    // What was held has its old time: the clock never goes back.
    clock_.now = std::max(clock_.now, next.key().first);
    if (Blocked(next.mapped())) {
      held_.insert(std::move(next));
      continue;
    }
    if (next.mapped().action) {
      lock.unlock();
      next.mapped().action();
      return true;
    }
    if (Deliver(std::move(next.mapped()), lock)) return true;
  }
  return false;
}

void LocalCore::AdvanceTo(absl::Time when) {
  std::lock_guard<std::mutex> lock(mutex_);
  clock_.now = std::max(clock_.now, when);
}

}  // namespace annulus
