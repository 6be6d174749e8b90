// Bytes in use of some kind, counted in those of a larger whole too. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>

namespace annulus {

class ByteCount {
 public:
  // `whole`, if there is one, outlives this.
  explicit ByteCount(ByteCount* whole = nullptr) : whole_(whole) {}

  int64_t bytes() const { return bytes_.load(std::memory_order_relaxed); }

  void Add(int64_t bytes) {
    bytes_.fetch_add(bytes, std::memory_order_relaxed);
    if (whole_ != nullptr) whole_->Add(bytes);
  }

  // Of what the whole counts already.
  void AddAlone(int64_t bytes) { bytes_.fetch_add(bytes, std::memory_order_relaxed); }

  // Adds them unless the sum would be above `bytes_max`; of a whole.
  bool AddWithin(int64_t bytes, int64_t bytes_max) {
    int64_t now = this->bytes();
    do {
      if (bytes > bytes_max - now) return false;
    } while (!bytes_.compare_exchange_weak(now, now + bytes));
    return true;
  }

 private:
  ByteCount* const whole_;
  std::atomic<int64_t> bytes_ = 0;
};

}  // namespace annulus
