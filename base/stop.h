// Stop: ends long work that nobody waits for any more. Work that may take long takes one as a
// value, asks it every few µs to ms, and returns early once it says so; what it returns then has no
// meaning, and whoever gave the Stop asks it for the reason. A default one never stops anything.
// Copies are the same one. Thread-safe.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/status/status.h"

namespace annulus {

class Stop {
 public:
  Stop() = default;
  // `why` says OK until the work should end, then why. It runs on whichever thread asks, on one at
  // a time, and not again once it has said so.
  explicit Stop(std::function<absl::Status()> why)
      : state_(std::make_shared<State>(std::move(why))) {}

  // Once true, always true.
  bool stopped() const {
    if (state_ == nullptr) return false;
    if (state_->stopped.load(std::memory_order_acquire)) return true;
    const std::unique_lock<std::mutex> lock(state_->mutex, std::try_to_lock);
    // Whoever has it asks at this moment.
    if (!lock.owns_lock() || state_->stopped) return state_->stopped;
    state_->status = state_->why();
    state_->stopped.store(!state_->status.ok(), std::memory_order_release);
    return state_->stopped;
  }

  // Why it stopped, or OK.
  absl::Status status() const { return stopped() ? state_->status : absl::OkStatus(); }

 private:
  struct State {
    explicit State(std::function<absl::Status()> why_stop) : why(std::move(why_stop)) {}
    const std::function<absl::Status()> why;
    std::mutex mutex;  // held while `why` runs
    std::atomic<bool> stopped = false;
    absl::Status status;  // written before stopped is
  };
  std::shared_ptr<State> state_;
};

}  // namespace annulus
