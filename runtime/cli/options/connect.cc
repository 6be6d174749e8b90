#include "runtime/cli/options/connect.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "base/quoted.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr absl::Duration kConnectTimeout = absl::Seconds(5);
constexpr absl::Duration kFirstTry = absl::Milliseconds(500);  // of TLS
constexpr int kProbeTimeoutMs = 1000;

// Whether `address` answers that nobody listens there; false where it does not say so in time.
bool Refuses(const addrinfo& address) {
  const int fd = socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return errno == EAFNOSUPPORT;
  int error = connect(fd, address.ai_addr, address.ai_addrlen) == 0 ? 0 : errno;
  if (error == EINPROGRESS) {
    pollfd writable{fd, POLLOUT, 0};
    socklen_t size = sizeof error;
    if (poll(&writable, 1, kProbeTimeoutMs) != 1 ||
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
      error = 0;
    }
  }
  close(fd);
  return error == ECONNREFUSED;
}

}  // namespace

absl::Status ProbeService(const std::string& endpoint) {
  const size_t colon = endpoint.rfind(':');
  std::string host = endpoint.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), endpoint.c_str() + colon + 1, &hints, &found);
  const auto failed = [&](absl::string_view why) {
    return absl::UnavailableError(absl::StrCat("no Annulus service at ", Quoted(endpoint), ": ",
                                               why, "; expected a coordinator's HOST:PORT"));
  };
  if (error != 0) return failed(gai_strerror(error));
  bool refused = true;
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    refused = refused && Refuses(*address);
  }
  freeaddrinfo(found);
  return refused ? failed("connection refused") : absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Client>> ConnectTo(const std::string& endpoint,
                                                  const ClientSecurity& security, Upload upload) {
  ClientOptions options{.endpoint = endpoint,
                        .connect_timeout = kFirstTry,
                        .upload = upload,
                        .tls_ca = security.tls.ca,
                        .tls_cert = security.tls.cert,
                        .tls_key = security.tls.key,
                        .token_file = security.token_file};
  // A server counts a connection without a handshake as one that failed: it is not asked unless it
  // does not answer.
  if (security.tls.on()) {
    absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(options);
    if (!absl::IsUnavailable(client.status())) return client;
  }
  // The client waits for a service that is about to come; a person who is at the wrong port does
  // not want to.
  ANNULUS_RETURN_IF_ERROR(ProbeService(endpoint));
  options.connect_timeout = kConnectTimeout;
  return Client::Connect(options);
}

}  // namespace annulus
