// What the options for a process's bounds come to.
#include "runtime/cli/options/options.h"
#include "runtime/cli/options/service_options.h"
#include "tests/catch.h"

namespace annulus {
namespace {

TEST_CASE("in-flight-max is how many calls work at once, here and at the server's door") {
  LimitFlags flags;
  CHECK(RpcLimitsOf(flags, {}).in_flight_max == flags.coordinator.in_flight_max);
  CHECK(RpcLimitsOf(flags, {}).in_flight_max == 256);  // as --help says
  for (const int calls : {1, 64, 3000}) {
    flags.coordinator.in_flight_max = calls;
    const RpcLimits rpc = RpcLimitsOf(flags, {});
    CHECK(rpc.in_flight_max == calls);
    // Calls that work have a place each, too: no other bound is met before.
    CHECK(rpc.transfers_max >= calls);
    CHECK(rpc.step_streams_max >= calls);
    CHECK(CheckLimits(rpc).ok());
  }
}

}  // namespace
}  // namespace annulus
