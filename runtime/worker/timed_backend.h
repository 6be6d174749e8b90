// TimedBackend: a backend that counts the time spent in it. Thread-safe as the backend it wraps;
// calls made at the same time count each.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/time/time.h"
#include "attention/backend.h"
#include "base/clock.h"

namespace annulus {

class TimedBackend final : public Backend {
 public:
  // `clock` outlives this.
  TimedBackend(std::unique_ptr<Backend> inner, const Clock& clock)
      : inner_(std::move(inner)), clock_(clock) {}

  const BackendCapabilities& capabilities() const override { return inner_->capabilities(); }

  absl::Status AttendBatch(absl::Span<const AttendArgs> batch) override {
    const absl::Time begin = clock_.Now();
    absl::Status status = inner_->AttendBatch(batch);
    busy_ns_.fetch_add(absl::ToInt64Nanoseconds(clock_.Now() - begin), std::memory_order_relaxed);
    return status;
  }

  bool Chooses(const AttendArgs& args) const override { return inner_->Chooses(args); }
  MemorySpace& memory() override { return inner_->memory(); }
  ThreadPool* pool() override { return inner_->pool(); }
  absl::Status health() const override { return inner_->health(); }
  std::optional<DeviceMemory> device_memory() const override { return inner_->device_memory(); }

  absl::Duration busy() const {
    return absl::Nanoseconds(busy_ns_.load(std::memory_order_relaxed));
  }

 private:
  const std::unique_ptr<Backend> inner_;
  const Clock& clock_;
  std::atomic<int64_t> busy_ns_ = 0;
};

}  // namespace annulus
