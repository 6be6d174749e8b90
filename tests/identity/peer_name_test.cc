// Who callers count as: where bounds are shared, where turns are taken and at the workers.
#include "runtime/identity/peer_name.h"

#include "tests/catch.h"

namespace annulus {
namespace {

Caller Of(const std::string& tenant, const std::string& client) {
  Caller caller;
  caller.tenant = tenant;
  caller.client = client;
  return caller;
}

TEST_CASE("a tenant counts as one wherever it calls from, others by their address or connection") {
  const Caller lab = Of("lab", "ipv4:192.0.2.1:80"), lab_too = Of("lab", "ipv4:192.0.2.2:80");
  CHECK(PeerOf(lab) == "tenant lab");
  CHECK(PeerOf(lab_too) == PeerOf(lab));
  CHECK(TurnOf(lab) == "tenant lab");
  CHECK(NumberOf(lab_too) == NumberOf(lab));
  CHECK(TenantOfTurn(TurnOf(lab)) == "lab");

  const Caller one = Of("", "ipv4:192.0.2.1:80"), other = Of("", "ipv4:192.0.2.1:81");
  CHECK(PeerOf(one) == "192.0.2.1");
  CHECK(PeerOf(other) == PeerOf(one));
  CHECK(TurnOf(one) == "ipv4:192.0.2.1:80");
  CHECK(TurnOf(other) != TurnOf(one));
  CHECK(NumberOf(other) != NumberOf(one));
  CHECK(TenantOfTurn(TurnOf(one)).empty());

  // A tenant may have any name.
  CHECK(NumberOf(Of("ipv4:192.0.2.1:80", "")) != NumberOf(one));
  CHECK(PeerOf(Caller()).empty());
  CHECK(TurnOf(Caller()).empty());
}

}  // namespace
}  // namespace annulus
