// PeerLinks: a worker's links to others, to which it sends partials, and the partials that came
// from others before the Work that they are of. Not thread-safe.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "annulus/buffer.h"
#include "comm/messenger.h"
#include "runtime/protocol/cluster/wire.h"

namespace annulus {

class PeerLinks {
 public:
  // What has come early, all together.
  static constexpr size_t kEarlyBytesMax = size_t{1} << 30;
  static constexpr size_t kEarlyMax = size_t{1} << 16;

  struct Early {
    wire::Partials body;
    Buffer payload;
    absl::Time since;
  };

  // Must outlive this.
  explicit PeerLinks(Messenger& messenger) : messenger_(messenger) {}

  // With which links are made from now on.
  void SetKey(const LinkKey& key) { key_ = key; }
  // False if the message cannot be sent: then the link, if there was one, is down.
  bool Send(const std::string& address, Message message);
  // Whether it was a link of ours. It is made anew when it is needed.
  bool Forget(PeerId peer);

  // False if there is no room: then nothing that was early is there any more.
  bool Keep(Early early);
  // What there is of this request, in the order in which it came.
  std::vector<Early> TakeEarly(uint64_t request);
  void DropEarlyBefore(absl::Time time);
  // What is early counts as come now.
  void RenewEarly(absl::Time now);
  void DropEarly();

 private:
  Messenger& messenger_;
  LinkKey key_;
  std::map<std::string, PeerId> links_;  // by address
  std::multimap<uint64_t, Early> early_;
  size_t early_bytes_ = 0;
};

}  // namespace annulus
