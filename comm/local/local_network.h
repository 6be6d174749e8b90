// LocalNetwork: a transport within one process, in one of two modes.
//  - Threads: each fabric's messenger is polled by a thread of its own; nothing is delayed.
//  - Simulated: a whole cluster in ONE thread under a simulated clock. Step delivers the next event
//    (a message, the news of a dead peer, a timer); seeded delays reorder messages of different
//    pairs, and links may be lost. The same seed and calls give the same trace. Handlers run inside
//    Step; Poll handles nothing and returns at once.
// Thread rule: threads mode is thread-safe (a messenger as messenger.h says); simulated mode is for
// one thread. The network outlives its fabrics.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "comm/fabric.h"

namespace annulus {

struct SimulationOptions {
  uint64_t seed = 1;
  absl::Time start = absl::UnixEpoch();
  // Of each message, uniform; messages from one peer to another keep their order.
  absl::Duration delay_min = absl::Microseconds(20);
  absl::Duration delay_max = absl::Microseconds(500);
  // The chance that a message takes its link down instead of arriving.
  double drop = 0;
  // From a link's loss or a peer's crash until on_peer_down.
  absl::Duration down_notice = absl::Milliseconds(10);
};

struct LocalNetworkOptions {
  size_t queue_bytes_max = size_t{256} << 20;   // undelivered payload to one peer
  std::optional<SimulationOptions> simulation;  // absent: threads
};

class LocalCore;

class LocalNetwork {
 public:
  explicit LocalNetwork(LocalNetworkOptions options = {});
  ~LocalNetwork();

  // A new place in the network; its address is "local:NAME". The name of a fabric that was crashed
  // or destroyed may be taken again. INVALID_ARGUMENT if a living fabric has it.
  absl::StatusOr<std::unique_ptr<Fabric>> MakeFabric(absl::string_view name);

  // The faults; `fabric`, `from` and `to` are addresses. Both modes:
  // The fabric dies: it handles nothing more, its sends fail, and its peers get on_peer_down.
  void Crash(absl::string_view fabric);

  // Simulated mode only.
  // A paused fabric handles nothing until it resumes; nothing is lost, nobody is told.
  void Pause(absl::string_view fabric);
  void Resume(absl::string_view fabric);
  // A black hole in one direction: nothing from `from` reaches `to`, not even the news of a crash,
  // until Unclog. Nothing is lost, nobody is told.
  void Clog(absl::string_view from, absl::string_view to);
  void Unclog(absl::string_view from, absl::string_view to);

  // The simulated time.
  const Clock& clock() const;
  // Runs `action` inside Step at `when` (now, if that has passed).
  void At(absl::Time when, std::function<void()> action);
  // Advances to the next event and handles it; false if there is none.
  bool Step();
  // Handles every event up to `when` and leaves the clock there.
  void RunUntil(absl::Time when);

 private:
  const std::unique_ptr<LocalCore> core_;
};

}  // namespace annulus
