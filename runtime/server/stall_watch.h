// StallWatch: cuts clients that keep a call waiting, since they do not send what they have
// announced or do not read what they are sent. The call of one that does so for client_stall_max at
// once is cancelled, and so is one that moves fewer bytes than client_rate_min a second for longer
// than that; what it held is free once its thread has seen that. What may only wait up to some
// time, an idle stream whose caller's token expires, is cut then. Thread-safe, but a pace belongs
// to one call.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <list>
#include <mutex>
#include <thread>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/line_limit.h"

namespace grpc {
class ServerContext;
}  // namespace grpc

namespace annulus {

struct ClientLimits {
  // How long a call waits for its client to send what it owes or to read what it is sent, at once.
  absl::Duration client_stall_max = absl::Seconds(10);
  // What a client must move of what it owes, in bytes per second of waiting for it. It may be as
  // far behind that as client_stall_max.
  int64_t client_rate_min = 64 << 10;
};

class StallWatch {
  struct Waiting {
    grpc::ServerContext* context;
    absl::Time until;
    bool owes;  // its client is to move something
  };

 public:
  explicit StallWatch(const ClientLimits& limits);
  ~StallWatch();

  // For as long as this lives, the call waits for its client, with so much patience.
  class Wait {
   public:
    Wait(StallWatch* watch, grpc::ServerContext* context, absl::Duration patience);
    // One whose bytes are not counted.
    Wait(StallWatch* watch, grpc::ServerContext* context)
        : Wait(watch, context, watch->limits_.client_stall_max) {}
    // Of a client that owes nothing: up to `until`, however long that is.
    Wait(StallWatch* watch, grpc::ServerContext* context, absl::Time until)
        : Wait(watch, {context, until, false}) {}
    ~Wait();
    Wait(const Wait&) = delete;
    Wait& operator=(const Wait&) = delete;

   private:
    Wait(StallWatch* watch, const Waiting& waiting);

    StallWatch* const watch_;
    std::list<Waiting>::iterator place_;
  };

  const ClientLimits& limits() const { return limits_; }

 private:
  void Run();
  void Tell(const grpc::ServerContext& context, absl::Time now);

  const ClientLimits limits_;
  LineLimit told_{10, absl::Seconds(1)};  // of the thread
  std::mutex mutex_;
  std::list<Waiting> waiting_;
  bool stopping_ = false;
  std::condition_variable stop_;
  std::thread thread_;
};

// How one call's client keeps up with what it owes.
class ClientPace {
 public:
  ClientPace(StallWatch* watch, grpc::ServerContext* context) : watch_(watch), context_(context) {}

  // Runs `move`, which waits for the client: it moves the message and says whether it did.
  template <typename Message, typename Move>
  bool Wait(const Message& message, Move move) {
    const absl::Time begin = absl::Now();
    const StallWatch::Wait wait(watch_, context_, Patience());
    const bool moved = move();
    Note(absl::Now() - begin, moved ? SizeOf(message) : 0);
    return moved;
  }

  // The client has done what it owed, and owes something else now.
  void Restart() { behind_ = absl::ZeroDuration(); }

 private:
  template <typename Message>
  static int64_t SizeOf(const Message& message) {
    if constexpr (requires { message.ByteSizeLong(); }) {
      return static_cast<int64_t>(message.ByteSizeLong());
    } else {
      return static_cast<int64_t>(message.Length());  // of bytes that are not parsed yet
    }
  }

  absl::Duration Patience() const;
  void Note(absl::Duration waited, int64_t bytes);

  StallWatch* const watch_;
  grpc::ServerContext* const context_;
  absl::Duration behind_;  // client_rate_min; who was faster once has earned nothing by that
};

}  // namespace annulus
