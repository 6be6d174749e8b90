// Admission: the bounds on what a server has under way, in calls and in bytes of request payload.
// What a call wants is reserved before it is accepted and given back when its ticket goes.
// Refusals carry a hint of when to try again. Thread-safe; a ticket belongs to one call.
#pragma once

#include <cstdint>
#include <mutex>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "annulus/retry_hint.h"

namespace annulus {

class Admission {
 public:
  Admission(int calls_max, int64_t bytes_max) : calls_max_(calls_max), bytes_max_(bytes_max) {}

  // One call's part of the bounds. Must not outlive the Admission.
  class Ticket {
   public:
    explicit Ticket(Admission* admission) : admission_(admission) {}
    ~Ticket() {
      std::lock_guard lock(admission_->mutex_);
      if (entered_) --admission_->calls_;
      admission_->bytes_ -= bytes_;
    }
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;

    // Once, first. RESOURCE_EXHAUSTED names the bound.
    absl::Status Enter() {
      std::lock_guard lock(admission_->mutex_);
      if (admission_->calls_ >= admission_->calls_max_) {
        return Refuse(absl::StrCat("in_flight_max ", admission_->calls_max_,
                                   " calls are under way; try again later"));
      }
      ++admission_->calls_;
      entered_ = true;
      return absl::OkStatus();
    }

    // RESOURCE_EXHAUSTED names the bound; INVALID_ARGUMENT for what never has room.
    absl::Status Reserve(int64_t bytes) {
      std::lock_guard lock(admission_->mutex_);
      if (bytes > admission_->bytes_max_ - bytes_) {
        return absl::InvalidArgumentError(
            absl::StrCat("bytes of the request: ", bytes, " of buffer; expected at most ",
                         admission_->bytes_max_ - bytes_, " (buffer_bytes_max)"));
      }
      if (bytes > admission_->bytes_max_ - admission_->bytes_) {
        return Refuse(absl::StrCat("the request needs ", bytes, " bytes of buffer and ",
                                   admission_->bytes_, " of buffer_bytes_max ",
                                   admission_->bytes_max_, " are taken; try again later"));
      }
      admission_->bytes_ += bytes;
      bytes_ += bytes;
      return absl::OkStatus();
    }

   private:
    // A few calls' time: what is under way ends soon, and whoever waits long loses its place. The
    // hints are spread, so that those that are refused together do not come again together: a
    // multiple of the golden ratio is far from those before it.
    absl::Status Refuse(absl::string_view why) const {
      constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;
      constexpr int kSpreadBits = 5;  // 32 ms
      const uint64_t spread_ms = (++admission_->refusals_ * kGolden) >> (64 - kSpreadBits);
      return WithRetryAfter(absl::ResourceExhaustedError(why),
                            kRetryAfterMin + absl::Milliseconds(spread_ms));
    }

    Admission* const admission_;
    bool entered_ = false;
    int64_t bytes_ = 0;
  };

 private:
  static constexpr absl::Duration kRetryAfterMin = absl::Milliseconds(20);

  const int calls_max_;
  const int64_t bytes_max_;
  std::mutex mutex_;
  int calls_ = 0;
  uint64_t refusals_ = 0;
  int64_t bytes_ = 0;
};

}  // namespace annulus
