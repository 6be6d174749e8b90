// Sockets that listen. Thread-safe functions.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace annulus {

// Listens on every address of the host in "host:port" ("[::1]:80"); all of them share the port, and
// port 0 is any free one. An address that this machine does not have is left out if there is
// another; one whose port is taken is not, since then some callers would meet somebody else. At
// least one socket, none of which blocks; UNAVAILABLE says why there is none, without the endpoint.
absl::StatusOr<std::vector<UniqueFd>> ListenAt(const std::string& endpoint, int backlog);

// The port that a socket is bound to.
int PortOf(int fd);

}  // namespace annulus
