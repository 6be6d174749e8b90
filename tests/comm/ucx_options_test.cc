// Options of UCX that a machine cannot follow.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "comm/ucx/ucx_fabric.h"
#include "tests/catch.h"

namespace annulus {

TEST_CASE("a range of TCP ports that are all taken is named") {
  const int taken = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  socklen_t size = sizeof(address);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  REQUIRE(bind(taken, generic, size) == 0);
  REQUIRE(listen(taken, 1) == 0);
  REQUIRE(getsockname(taken, generic, &size) == 0);
  const int port = ntohs(address.sin_port);
  UcxOptions options;
  options.transports = "tcp";
  options.net_devices = "lo";
  options.tcp_port_range = absl::StrCat(port, "-", port);
  const absl::Status refused = UcxFabric::Create(options).status();
  close(taken);
  CHECK(refused ==
        absl::UnavailableError(absl::StrCat("tcp_port_range: ", options.tcp_port_range,
                                            "; expected a port among them that is free")));
}

}  // namespace annulus
