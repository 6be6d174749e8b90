#include "base/listener.h"

#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#include <cerrno>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"

namespace annulus {
namespace {

void SetOption(int fd, int level, int option, int value) {
  setsockopt(fd, level, option, &value, sizeof(value));
}

// A socket that listens on the address; its port 0 means `port`. Errno tells why there is none.
UniqueFd ListenOn(const addrinfo& address, int port, int backlog) {
  UniqueFd fd(socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.is_open()) return fd;
  sockaddr_storage name = {};
  memcpy(&name, address.ai_addr, address.ai_addrlen);
  const auto port_there = htons(static_cast<uint16_t>(port));
  if (address.ai_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6&>(name).sin6_port = port_there;
    SetOption(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0);  // "[::]" takes IPv4 too
  } else {
    reinterpret_cast<sockaddr_in&>(name).sin_port = port_there;
  }
  SetOption(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&name), address.ai_addrlen) != 0 ||
      listen(fd.get(), backlog) != 0) {
    const int error = errno;
    fd.Reset();
    errno = error;
  }
  return fd;
}

}  // namespace

absl::StatusOr<std::vector<UniqueFd>> ListenAt(const std::string& endpoint, int backlog) {
  const size_t colon = endpoint.rfind(':');
  absl::string_view host = absl::string_view(endpoint).substr(0, colon);
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  int port = 0;
  if (!absl::SimpleAtoi(endpoint.substr(colon + 1), &port)) {
    return absl::UnavailableError("the port is no number");
  }
  addrinfo hints = {};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(std::string(host).c_str(), "0", &hints, &found); error != 0) {
    return absl::UnavailableError(gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, freeaddrinfo);
  std::vector<UniqueFd> listeners;
  int error = EADDRNOTAVAIL;
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    UniqueFd listener = ListenOn(*address, port, backlog);
    if (!listener.is_open()) {
      error = errno;
      if (error == EADDRNOTAVAIL || error == EAFNOSUPPORT) continue;
      return absl::UnavailableError(strerror(error));
    }
    port = PortOf(listener.get());
    listeners.push_back(std::move(listener));
  }
  if (listeners.empty()) return absl::UnavailableError(strerror(error));
  return listeners;
}

int PortOf(int fd) {
  sockaddr_storage name = {};
  socklen_t size = sizeof(name);
  getsockname(fd, reinterpret_cast<sockaddr*>(&name), &size);
  return ntohs(name.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(name).sin6_port
                                          : reinterpret_cast<sockaddr_in&>(name).sin_port);
}

}  // namespace annulus
