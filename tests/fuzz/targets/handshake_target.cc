#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "runtime/coordinator/coordinator_loop.h"
#include "runtime/worker/coordinator_link.h"
#include "tests/fuzz/targets/targets.h"

namespace annulus::fuzz {
namespace {

constexpr PeerId kPeers = 4;
constexpr size_t kMessageMax = 1024;

struct HandClock final : Clock {
  absl::Time Now() const override { return now; }
  absl::Time now = absl::UnixEpoch() + absl::Hours(1);
};

// Delivers what it is told to, from peers that are there.
class FakeMessenger final : public Messenger {
 public:
  void SetHandlers(Handlers handlers) override { handlers_ = std::move(handlers); }
  std::string address() const override { return "fake:here"; }
  using Messenger::Connect;
  absl::StatusOr<PeerId> Connect(absl::string_view, const LinkKey&) override {
    connected_ = ++last_peer_;
    peers_.insert(connected_);
    return connected_;
  }
  void SetDoor(PeerDoor) override {}
  void AdmitKey(const LinkKey&) override {}
  void DismissKey(const LinkKey&) override {}
  absl::StatusOr<LinkKey> KeyOf(PeerId) const override { return LinkKey(); }
  void Trust(PeerId peer) override { ANNULUS_CHECK(peers_.count(peer) == 1); }
  absl::Status Send(PeerId peer, Message message) override {
    ANNULUS_CHECK(wire::Decode(message).ok());
    return peers_.count(peer) == 1 ? absl::OkStatus() : absl::NotFoundError("it is down");
  }
  void Disconnect(PeerId peer) override { peers_.erase(peer); }
  void Wait(absl::Duration) override {}
  int Deliver() override {
    auto events = std::exchange(events_, {});
    for (auto& [peer, message] : events) {
      if (peers_.count(peer) == 0) continue;
      if (message.has_value()) {
        handlers_.on_message(peer, *std::move(message));
      } else {
        peers_.erase(peer);
        handlers_.on_peer_down(peer, absl::UnavailableError("gone"));
      }
    }
    return static_cast<int>(events.size());
  }
  void Wake() override {}
  Counters counters() const override { return {}; }

  // An absent message is the news that the peer is down.
  void Arrive(PeerId peer, std::optional<Message> message) {
    events_.emplace_back(peer, std::move(message));
  }
  void Meet(PeerId peer) {
    peers_.insert(peer);
    last_peer_ = std::max(last_peer_, peer);
  }
  PeerId connected() const { return connected_; }

 private:
  Handlers handlers_;
  PeerId last_peer_ = 0;
  PeerId connected_ = 0;  // by us, the last
  std::set<PeerId> peers_;
  std::vector<std::pair<PeerId, std::optional<Message>>> events_;
};

Message TakeMessage(Bytes* input) {
  Message message;
  message.type = TakeByte(input);
  const size_t low = TakeByte(input);
  const size_t body_bytes = (low | size_t{TakeByte(input)} << 8) % kMessageMax;
  message.body = std::string(Text(TakeFront(input, body_bytes)));
  const Bytes payload = TakeFront(input, TakeByte(input));
  message.payload = Buffer::Copy(payload.data(), payload.size());
  return message;
}

event::Begin SomeCall(CallId call, unsigned what, ContextId context) {
  if (what % 3 == 1) return {call, request::Fork{context, {}}};
  if (what % 3 == 2) return {call, request::Release{context}};
  ContextSpec spec;
  spec.layers = 2;
  spec.heads = spec.kv_heads = 1;
  spec.head_dim = spec.v_head_dim = 8;
  spec.replicas = 1 + static_cast<int>(what / 3 % 2);
  return {call, request::Create{spec}};
}

// Peers come, say what the input says, and go; calls begin meanwhile.
bool TryCoordinator(Bytes input) {
  HandClock clock;
  FakeMessenger messenger;
  CoordinatorLoop node(messenger, {}, absl::Seconds(1), clock, {.number = 100});
  ContextId context = 0;
  PeerId met = 0;
  bool joined = false;
  for (CallId call = 101; !input.empty(); ++call) {
    const unsigned what = TakeByte(&input);
    const PeerId peer = 1 + (what >> 4) % kPeers;
    while (met < peer) messenger.Meet(++met);
    switch (what % 8) {
      case 0:
        node.Begin(SomeCall(call, what >> 4, context), [&](CallNews news) {
          const auto* finish = std::get_if<action::Finish>(&news);
          if (finish != nullptr && finish->status.ok()) context = finish->context;
        });
        break;
      case 1:
        messenger.Arrive(peer, std::nullopt);
        break;
      case 2:
        clock.now += absl::Milliseconds(100 * TakeByte(&input));
        break;
      case 3:
        node.GiveUpAll(absl::CancelledError("nobody waits"));
        break;
      default:
        messenger.Arrive(peer, TakeMessage(&input));
    }
    node.Handle();
    for (const WorkerStatus& worker : node.core().Status(clock.now).workers) {
      ANNULUS_CHECK(worker.kv_bytes >= 0 && worker.kv_bytes_limit >= 0);
      joined = true;
    }
  }
  return joined;
}

// What a worker hears of its coordinator, or of whoever answers there.
bool TryWorker(Bytes input) {
  HandClock clock;
  FakeMessenger messenger;
  std::vector<WorkerTask> tasks;
  CoordinatorLink node(messenger,
                       {.coordinator_address = "fake:there",
                        .name = "w",
                        .backend = "none",
                        .heartbeat_period = absl::Milliseconds(100),
                        .heartbeat_timeout = absl::Seconds(1),
                        .rejoin_timeout = absl::Seconds(30),
                        .kv_bytes = [] { return 0; },
                        .owners = [](size_t) { return std::vector<OwnerBytes>(); },
                        .take =
                            [&](WorkerTask& task, bool) {
                              if (tasks.size() >= 16) return false;
                              tasks.push_back(std::move(task));
                              return true;
                            }},
                       clock);
  bool joined = false;
  node.Handle();
  while (!input.empty()) {
    const unsigned what = TakeByte(&input);
    switch (what % 4) {
      case 0:
        messenger.Arrive(messenger.connected() + (what >> 4) / 15, std::nullopt);
        break;
      case 1:
        clock.now += absl::Milliseconds(50 * TakeByte(&input));
        break;
      default:
        messenger.Arrive(messenger.connected(), TakeMessage(&input));
    }
    node.Handle();
    joined |= node.state() == LinkState::kReady;
  }
  return joined;
}

}  // namespace

bool TryHandshake(Bytes input) {
  SetLogLevel(LogLevel::kOff);
  return TakeByte(&input) % 2 == 0 ? TryCoordinator(input) : TryWorker(input);
}

}  // namespace annulus::fuzz
