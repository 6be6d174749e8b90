#include "runtime/server/stall_watch.h"

#include <grpcpp/server_context.h>

#include "absl/time/clock.h"
#include "base/log.h"

namespace annulus {

StallWatch::StallWatch(absl::Duration client_stall_max)
    : client_stall_max_(client_stall_max), thread_([this] { Run(); }) {}

StallWatch::~StallWatch() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_one();
  thread_.join();
}

StallWatch::Wait::Wait(StallWatch* watch, grpc::ServerContext* context)
    : watch_(watch), list_(&watch->waiting_) {
  const std::lock_guard<std::mutex> lock(watch_->mutex_);
  place_ = list_->insert(list_->end(), {context, absl::Now()});
}

StallWatch::Wait::Wait(StallWatch* watch, grpc::ServerContext* context, absl::Time until)
    : watch_(watch), list_(&watch->bounded_) {
  const std::lock_guard<std::mutex> lock(watch_->mutex_);
  place_ = list_->insert(list_->end(), {context, until});
}

StallWatch::Wait::~Wait() {
  const std::lock_guard<std::mutex> lock(watch_->mutex_);
  list_->erase(place_);
}

// Looks now and then instead of being woken for each wait, of which there are several in each call.
void StallWatch::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    stop_.wait_for(lock, absl::ToChronoMicroseconds(client_stall_max_ / 10));
    const absl::Time now = absl::Now();
    for (Waiting& waiting : waiting_) {
      if (now - waiting.since < client_stall_max_) break;
      Log(LogLevel::kWarning, "client cut: it neither sends nor reads",
          {{"client", waiting.context->peer()},
           {"client_stall_max_s", absl::ToDoubleSeconds(client_stall_max_)}});
      waiting.context->TryCancel();
      waiting.since = now;  // its thread may take a moment
    }
    for (const Waiting& bounded : bounded_) {
      if (now >= bounded.since) bounded.context->TryCancel();
    }
  }
}

}  // namespace annulus
