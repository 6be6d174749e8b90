#include "runtime/server/limits.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/identity/peer_name.h"
#include "runtime/limits.h"

namespace annulus {
namespace {

constexpr int64_t kBytesMax = int64_t{1} << 50;

absl::Status CheckLimit(absl::string_view name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": ", value, "; expected ", low, " to ", high));
}

// What one call may bring must be less than one peer may hold.
absl::Status CheckInBuffer(absl::string_view name, int64_t value, int64_t buffer_bytes_max) {
  const int64_t one_peers = ShareOf(buffer_bytes_max);
  if (value >= 1 && value <= one_peers) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; expected 1 to ", one_peers,
                                                 ", half of buffer_bytes_max"));
}

}  // namespace

absl::Status CheckLimits(const RpcLimits& limits) {
  ANNULUS_RETURN_IF_ERROR(CheckLimit("in_flight_max", limits.in_flight_max, 1, kCallsMax));
  ANNULUS_RETURN_IF_ERROR(CheckLimit("transfers_max", limits.transfers_max, 1, kCallsMax));
  ANNULUS_RETURN_IF_ERROR(CheckLimit("step_streams_max", limits.step_streams_max, 1, kCallsMax));
  ANNULUS_RETURN_IF_ERROR(CheckLimit("short_calls_max", limits.short_calls_max, 1, kCallsMax));
  ANNULUS_RETURN_IF_ERROR(CheckLimit("buffer_bytes_max", limits.buffer_bytes_max, 1, kBytesMax));
  ANNULUS_RETURN_IF_ERROR(
      CheckInBuffer("request_bytes_max", limits.stream.request_bytes_max, limits.buffer_bytes_max));
  ANNULUS_RETURN_IF_ERROR(
      CheckInBuffer("piece_bytes_max", limits.stream.piece_bytes_max, limits.buffer_bytes_max));
  ANNULUS_RETURN_IF_ERROR(CheckLimit("transport_bytes_max", limits.transport_bytes_max,
                                     2 * kMessageBytesMax, kBytesMax));
  ANNULUS_RETURN_IF_ERROR(
      CheckLimit("chunk_bytes", limits.chunk_bytes, 1, kMessageBytesMax - kMessageRoomBytes));
  ANNULUS_RETURN_IF_ERROR(CheckLimits(limits.connections));
  return CheckLimits(limits.client);
}

absl::Status CheckLimits(const ClientLimits& limits) {
  ANNULUS_RETURN_IF_ERROR(CheckLimit("client_stall_max in ms",
                                     absl::ToInt64Milliseconds(limits.client_stall_max), 10,
                                     absl::ToInt64Milliseconds(absl::Hours(1))));
  return CheckLimit("client_rate_min", limits.client_rate_min, 1, kBytesMax);
}

RpcLoad RpcBounds::Load() const {
  RpcLoad load;
  load.transfers = transfers.count();
  load.step_streams = step_streams.count();
  for (const auto& [turn, calls] : admission.Waiting()) {
    load.calls_waiting += calls;
    if (const std::string tenant = TenantOfTurn(turn); !tenant.empty()) {
      load.calls_waiting_by_tenant[tenant] += calls;
    }
  }
  load.queue_wait = admission.waits();
  load.refused = refusals.Read();
  return load;
}

}  // namespace annulus
