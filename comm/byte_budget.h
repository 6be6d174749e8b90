// ByteBudget: how many bytes something may hold, itself and together with others. What is held is
// given back by the end of its Hold. Not thread-safe.
#pragma once

#include <cstddef>
#include <utility>

namespace annulus {

class ByteBudget {
 public:
  // Both outlive their holds; `all` may be null.
  explicit ByteBudget(size_t bytes_max, ByteBudget* all = nullptr)
      : bytes_max_(bytes_max), all_(all) {}
  ByteBudget(const ByteBudget&) = delete;
  ByteBudget& operator=(const ByteBudget&) = delete;

  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept
        : budget_(std::exchange(other.budget_, nullptr)), bytes_(other.bytes_) {}
    Hold& operator=(Hold&& other) noexcept {
      std::swap(budget_, other.budget_);
      std::swap(bytes_, other.bytes_);
      return *this;
    }
    ~Hold() {
      if (budget_ != nullptr) budget_->Give(bytes_);
    }

   private:
    friend class ByteBudget;
    Hold(ByteBudget* budget, size_t bytes) : budget_(budget), bytes_(bytes) {}

    ByteBudget* budget_ = nullptr;
    size_t bytes_ = 0;
  };

  // False, and nothing is taken, if they are more than is left here or of `all`.
  bool Take(size_t bytes, Hold* hold) {
    if (!Fits(bytes)) return false;
    for (ByteBudget* budget = this; budget != nullptr; budget = budget->all_) {
      budget->held_bytes_ += bytes;
    }
    *hold = Hold(this, bytes);
    return true;
  }

  size_t held_bytes() const { return held_bytes_; }
  void SetMax(size_t bytes_max) { bytes_max_ = bytes_max; }

 private:
  bool Fits(size_t bytes) const {
    const bool here = held_bytes_ <= bytes_max_ && bytes <= bytes_max_ - held_bytes_;
    return here && (all_ == nullptr || all_->Fits(bytes));
  }
  void Give(size_t bytes) {
    for (ByteBudget* budget = this; budget != nullptr; budget = budget->all_) {
      budget->held_bytes_ -= bytes;
    }
  }

  size_t bytes_max_;
  size_t held_bytes_ = 0;
  ByteBudget* const all_;
};

}  // namespace annulus
