// StallWatch: cuts clients that keep a call waiting, since they do not send what they have
// announced or do not read what they are sent. The call of one that does so for client_stall_max is
// cancelled; what it held is free once its thread has seen that. What may only wait up to some
// time, an idle stream whose caller's token expires, is cut then. Thread-safe.
#pragma once

#include <condition_variable>
#include <list>
#include <mutex>
#include <thread>

#include "absl/time/time.h"

namespace grpc {
class ServerContext;
}  // namespace grpc

namespace annulus {

class StallWatch {
  struct Waiting {
    grpc::ServerContext* context;
    absl::Time since;
  };

 public:
  explicit StallWatch(absl::Duration client_stall_max);
  ~StallWatch();

  // For as long as this lives, the call waits for its client.
  class Wait {
   public:
    Wait(StallWatch* watch, grpc::ServerContext* context);
    // Up to `until`, however long that is.
    Wait(StallWatch* watch, grpc::ServerContext* context, absl::Time until);
    ~Wait();
    Wait(const Wait&) = delete;
    Wait& operator=(const Wait&) = delete;

   private:
    StallWatch* const watch_;
    std::list<Waiting>* const list_;
    std::list<Waiting>::iterator place_;
  };

 private:
  void Run();

  const absl::Duration client_stall_max_;
  std::mutex mutex_;
  std::list<Waiting> waiting_;  // the longest at the front
  std::list<Waiting> bounded_;  // in any order; `since` is when they are to end
  bool stopping_ = false;
  std::condition_variable stop_;
  std::thread thread_;
};

}  // namespace annulus
