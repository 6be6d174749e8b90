// ExpSum: a sum of exponentials that is the same whichever way its terms are grouped and ordered,
// so that several holders of keys make of their parts what one makes of all. A term is rounded to
// 31 bits first; then whole numbers are added: 32 bits of the exponent make a bin, and a sum keeps
// the bins near its largest term. What lies below weighs less than 2^-64 of that term.
// Plain values, sent as they are.
#pragma once

#include <cstdint>
#include <limits>

namespace annulus {

class ExpSum {
 public:
  // Adds mantissa·2^(exponent − kMantissaBits). REQUIRES: mantissa in [2^29, 2^31), |exponent| at
  // most kExponentMax.
  static constexpr int kMantissaBits = 30;
  static constexpr int32_t kExponentMax = 1 << 28;
  void Add(uint32_t mantissa, int32_t exponent) {
    const int64_t bin = exponent >> 5;
    if (top_ == kSpoiled) return;
    Raise(bin);
    const int64_t at = bin - top_ + kBelow;
    if (at < -1) return;
    const uint64_t value = uint64_t{mantissa} << (exponent & 31);
    if (at >= 0) bins_[at] += value & 0xffffffff;
    bins_[at + 1] += value >> 32;
  }

  void Merge(const ExpSum& other) {
    if (other.top_ == kEmpty || top_ == kSpoiled) return;
    if (other.top_ == kSpoiled) return Spoil();
    Raise(other.top_);
    for (int64_t i = 0; i < kBins; ++i) {
      const int64_t at = i + other.top_ - top_;
      if (at >= 0) bins_[at] += other.bins_[i];
    }
  }

  // A term that is no finite number makes a sum that has no answer.
  void Spoil() { top_ = kSpoiled; }

  // The base-2 logarithm; −∞ of no terms, NaN where it has no answer.
  double Log2() const;

 private:
  static constexpr int kBelow = 2;  // bins below that of the largest term, and one above
  static constexpr int kBins = kBelow + 2;
  static constexpr int32_t kEmpty = std::numeric_limits<int32_t>::min();
  static constexpr int32_t kSpoiled = std::numeric_limits<int32_t>::max();

  // Makes `top` the largest bin, if it is. A bin that is kept has all that was ever added to it.
  void Raise(int64_t top) {
    if (top <= top_) return;
    const int64_t by = top_ == kEmpty ? kBins : top - top_;
    for (int64_t i = 0; i < kBins; ++i) bins_[i] = i + by < kBins ? bins_[i + by] : 0;
    top_ = static_cast<int32_t>(top);
  }

  // bins_[i] counts 2^(32·(top_ − kBelow + i) − kMantissaBits).
  uint64_t bins_[kBins] = {};
  int32_t top_ = kEmpty;
  int32_t unused_ = 0;  // its bytes are sent, too
};

}  // namespace annulus
