#include "runtime/cli/report/progress.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace annulus {
namespace {

constexpr int kWidth = 40;

}  // namespace

Progress::Progress(const Console& console, std::string label)
    : stream_(console.err_is_terminal ? console.err : nullptr),
      label_(std::move(label)),
      begin_(absl::Now()) {}

Progress::~Progress() {
  if (stream_ != nullptr && drawn_ != absl::InfinitePast()) *stream_ << std::endl;
}

void Progress::Show(int64_t done, int64_t all) {
  if (stream_ == nullptr || all <= 0) return;
  const absl::Time now = absl::Now();
  if (done < all && now - drawn_ < absl::Milliseconds(100)) return;
  drawn_ = now;
  const double share = static_cast<double>(done) / static_cast<double>(all);
  const int filled = std::clamp(static_cast<int>(share * kWidth), 0, kWidth);
  const double seconds = std::max(absl::ToDoubleSeconds(now - begin_), 1e-9);
  const double rate = static_cast<double>(done) / seconds;
  const double left_s = done > 0 ? static_cast<double>(all - done) / rate : 0;
  *stream_ << absl::StrFormat("\r%s [%s%s] %.2f of %.2f GB  %.2f GB/s  %.0f s left ", label_,
                              std::string(filled, '#'), std::string(kWidth - filled, '.'),
                              1e-9 * static_cast<double>(done), 1e-9 * static_cast<double>(all),
                              1e-9 * rate, left_s)
           << std::flush;
}

}  // namespace annulus
