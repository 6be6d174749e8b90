#include "runtime/cli/demo/probe.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "base/status.h"

namespace annulus {

absl::StatusOr<BandwidthProbe> BandwidthProbe::Create(Backend& backend, size_t bytes) {
  BandwidthProbe probe;
  if (backend.memory().kind() == MemoryKind::kHost) {
    probe.host_ = std::make_unique<ReadProbe>(/*threads=*/0, bytes);
    return probe;
  }
  probe.space_ = &backend.memory();
  ANNULUS_ASSIGN_OR_RETURN(probe.from_, probe.space_->AllocateZeroed(bytes));
  ANNULUS_ASSIGN_OR_RETURN(probe.to_, probe.space_->AllocateZeroed(bytes));
  return probe;
}

absl::StatusOr<double> BandwidthProbe::Measure() {
  if (host_ != nullptr) return host_->Measure();
  constexpr size_t kRowBytes = size_t{64} << 10;  // rows are copied beside one another
  const size_t rows = from_.size() / kRowBytes;
  const RowsCopy copy{from_.data(), to_.data(), static_cast<int64_t>(rows),
                      kRowBytes,    kRowBytes,  kRowBytes};
  const absl::Time begin = absl::Now();
  ANNULUS_RETURN_IF_ERROR(space_->Copy({&copy, 1}));
  return 2.0 * static_cast<double>(rows * kRowBytes) / absl::ToDoubleSeconds(absl::Now() - begin);
}

int GpusOf(Backend& backend, int workers) {
  if (backend.memory().kind() == MemoryKind::kHost) return 0;
  return std::clamp(backend.capabilities().gpus, 1, workers);
}

}  // namespace annulus
