#include "runtime/server/stall_watch.h"

#include <grpcpp/server_context.h>

#include <algorithm>
#include <optional>

#include "base/log.h"

namespace annulus {

StallWatch::StallWatch(const ClientLimits& limits) : limits_(limits), thread_([this] { Run(); }) {}

StallWatch::~StallWatch() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_one();
  thread_.join();
}

StallWatch::Wait::Wait(StallWatch* watch, grpc::ServerContext* context, absl::Duration patience)
    : Wait(watch, {context, absl::Now() + patience, true}) {}

StallWatch::Wait::Wait(StallWatch* watch, const Waiting& waiting) : watch_(watch) {
  const std::lock_guard<std::mutex> lock(watch_->mutex_);
  place_ = watch_->waiting_.insert(watch_->waiting_.end(), waiting);
}

StallWatch::Wait::~Wait() {
  const std::lock_guard<std::mutex> lock(watch_->mutex_);
  watch_->waiting_.erase(place_);
}

// Looks now and then instead of being woken for each wait, of which there are several in each call.
void StallWatch::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    stop_.wait_for(lock, absl::ToChronoMicroseconds(limits_.client_stall_max / 10));
    const absl::Time now = absl::Now();
    for (Waiting& waiting : waiting_) {
      if (now < waiting.until) continue;
      if (waiting.owes) Tell(*waiting.context, now);
      waiting.context->TryCancel();
      waiting.until = now + limits_.client_stall_max;  // its thread may take a moment
    }
  }
}

void StallWatch::Tell(const grpc::ServerContext& context, absl::Time now) {
  const std::optional<int64_t> left_out = told_.Admit(now);
  if (!left_out.has_value()) return;
  Log(LogLevel::kWarning, "client cut: it neither sends nor reads, or too slowly",
      {{"client", context.peer()},
       {"client_stall_max_s", absl::ToDoubleSeconds(limits_.client_stall_max)},
       {"client_rate_min", limits_.client_rate_min},
       {"left_out", *left_out}});
}

absl::Duration ClientPace::Patience() const {
  return std::max(watch_->limits().client_stall_max - behind_, absl::ZeroDuration());
}

void ClientPace::Note(absl::Duration waited, int64_t bytes) {
  const auto rate = static_cast<double>(watch_->limits().client_rate_min);
  behind_ = std::max(behind_ + waited - absl::Seconds(static_cast<double>(bytes) / rate),
                     absl::ZeroDuration());
}

}  // namespace annulus
