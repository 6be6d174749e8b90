// Places: the calls that may wait for their clients, each of which has a thread of the server's:
// streams that stay open, and uploads. They are bounded in all, and a peer (peer.h) has at most
// half. Where there is no room for one more, the one that has been idle longest ends, if that is
// more than a moment: of the peer itself if that has its half, else of the peer with the most. Who
// opens many and leaves them idle so keeps nobody out. Thread-safe.
#pragma once

#include <list>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/identity/caller.h"

namespace grpc {
class ServerContext;
}  // namespace grpc

namespace annulus {

class Places {
  struct Entry {
    grpc::ServerContext* context;
    std::string peer;
    bool busy;
    absl::Time since;  // it is idle
    bool counts;       // not if its call was cancelled for being idle
  };

 public:
  // The name of the bound, as errors say it.
  Places(std::string name, int places_max) : name_(std::move(name)), places_max_(places_max) {}

  // A call's place, idle at first. Must not outlive the Places or the context.
  class Place {
   public:
    explicit Place(Places* places) : places_(places) {}
    ~Place();
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

    // Once, first. RESOURCE_EXHAUSTED names the bound, UNAVAILABLE says that the server shuts down.
    absl::Status Take(grpc::ServerContext* context, const std::string& peer);
    // The same of a caller with a quota of such places, whose name errors say.
    absl::Status Take(grpc::ServerContext* context, const std::string& peer, const Caller& caller,
                      absl::string_view quota, int64_t quota_max);
    // Says that work begins, or that the call waits for its client, who may not come back. False:
    // the call is cancelled, or will be as soon as it is idle; it must not begin anything.
    bool SetBusy(bool busy);

   private:
    Places* const places_;
    bool taken_ = false;
    std::list<Entry>::iterator entry_;
  };

  // From now on nothing begins, and what is idle ends.
  void Drain();

  int count() const {  // that are taken
    const std::lock_guard<std::mutex> lock(mutex_);
    return count_;
  }

 private:
  // All with the mutex held.
  int PlacesOf(const std::string& peer) const;
  // Whether there was one to end.
  bool EndIdle(const std::string* of_peer);
  void Uncount(Entry& entry);

  const std::string name_;
  const int places_max_;
  mutable std::mutex mutex_;
  bool draining_ = false;
  int count_ = 0;
  std::list<Entry> entries_;  // the idle ones in the order of `since`
  std::unordered_map<std::string, int> peers_;
};

}  // namespace annulus
