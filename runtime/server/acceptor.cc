#include "runtime/server/acceptor.h"

#include <fcntl.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/listener.h"
#include "base/peer_address.h"
#include "base/shared_bound.h"
#include "base/status.h"
#include "runtime/protocol/public/tls_files.h"

namespace annulus {
namespace {

constexpr int kConnectionsLimit = 1 << 20;
// Descriptors that a process needs beside its clients' connections.
constexpr int kOtherDescriptors = 128;
constexpr int kConnectionsLeast = 8;
constexpr int kBacklog = 4096;
constexpr int kAcceptedAtOnce = 64;
// How often connections that have gone are looked for, at the longest and while a bound is met.
constexpr absl::Duration kSweepPeriod = absl::Milliseconds(500);
constexpr absl::Duration kSweepPeriodMin = absl::Milliseconds(20);
// After an accept that failed for want of something.
constexpr absl::Duration kAcceptPause = absl::Milliseconds(20);

int DescriptorsMax() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return kOtherDescriptors;
  return static_cast<int>(std::min<rlim_t>(limit.rlim_cur, kConnectionsLimit));
}

UniqueFd OpenSpare() {
  return UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC));
}

void SetOption(int fd, int level, int option, int value) {
  setsockopt(fd, level, option, &value, sizeof(value));
}

}  // namespace

absl::Status CheckLimits(const ConnectionLimits& limits) {
  if (limits.connections_max < 1 || limits.connections_max > kConnectionsLimit) {
    return absl::InvalidArgumentError(absl::StrCat("connections_max: ", limits.connections_max,
                                                   "; expected 1 to ", kConnectionsLimit));
  }
  if (limits.connection_rate_max < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("connection_rate_max: ", limits.connection_rate_max, "; expected 1 or more"));
  }
  if (limits.handshake_max >= absl::Milliseconds(10) && limits.handshake_max <= absl::Hours(1)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("handshake_max in ms: ", absl::ToInt64Milliseconds(limits.handshake_max),
                   "; expected 10 to 3600000"));
}

Acceptor::Acceptor(const ConnectionLimits& limits, ConnectionCounts* counts)
    : limits_(limits),
      counts_(counts != nullptr ? *counts : own_counts_),
      connections_max_(std::min(limits.connections_max,
                                std::max(kConnectionsLeast, DescriptorsMax() - kOtherDescriptors))),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      spare_(OpenSpare()) {}

Acceptor::~Acceptor() {
  Stop();
  counts_.open -= std::ssize(connections_);
}

absl::StatusOr<std::unique_ptr<Acceptor>> Acceptor::Listen(const std::string& listen,
                                                           const ConnectionLimits& limits,
                                                           ConnectionCounts* counts) {
  ANNULUS_RETURN_IF_ERROR(CheckLimits(limits));
  absl::StatusOr<std::vector<UniqueFd>> listeners = ListenAt(listen, kBacklog);
  if (!listeners.ok()) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on \"", listen, "\": ", listeners.status().message(),
                     "; expected an address of this machine and a free port"));
  }
  auto acceptor = std::unique_ptr<Acceptor>(new Acceptor(limits, counts));
  acceptor->port_ = PortOf(listeners->front().get());
  acceptor->listeners_ = *std::move(listeners);
  return acceptor;
}

void Acceptor::AddTo(grpc::ServerBuilder* builder, const TlsFiles& tls) {
  handshakes_ = tls.handshakes();
  builder->AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                              static_cast<int>(absl::ToInt64Milliseconds(limits_.handshake_max)));
  using Type = grpc::ServerBuilder::experimental_type::ExternalConnectionType;
  server_ =
      builder->experimental().AddExternalConnectionAcceptor(Type::FROM_FD, tls.ServerCredentials());
}

void Acceptor::Start() {
  thread_ = std::thread([this] { Run(); });
}

void Acceptor::Stop() {
  if (thread_.joinable()) {
    stopping_ = true;
    eventfd_write(wake_.get(), 1);
    thread_.join();
  }
  listeners_.clear();
}

bool Acceptor::Answers(absl::Duration patience) {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t asked = ++asked_;
  eventfd_write(wake_.get(), 1);
  return answered_.wait_for(lock, absl::ToChronoMilliseconds(patience),
                            [&] { return rounds_ >= asked; });
}

void Acceptor::Run() {
  std::vector<pollfd> watched = {{wake_.get(), POLLIN, 0}};
  for (const UniqueFd& listener : listeners_) watched.push_back({listener.get(), POLLIN, 0});
  while (true) {
    const int wait_ms =
        peers_.empty() ? -1 : static_cast<int>(absl::ToInt64Milliseconds(kSweepPeriod));
    poll(watched.data(), watched.size(), wait_ms);
    if (stopping_) return;
    if (watched[0].revents != 0) {
      eventfd_t count = 0;
      eventfd_read(wake_.get(), &count);
      const std::lock_guard<std::mutex> lock(mutex_);
      rounds_ = asked_;
      answered_.notify_all();
    }
    for (size_t i = 1; i < watched.size(); ++i) {
      if (watched[i].revents != 0) AcceptSome(watched[i].fd);
    }
    if (absl::Now() - swept_ >= kSweepPeriod) Sweep();
  }
}

void Acceptor::AcceptSome(int listener) {
  for (int i = 0; i < kAcceptedAtOnce; ++i) {
    sockaddr_storage address = {};
    socklen_t size = sizeof(address);
    auto* const name = reinterpret_cast<sockaddr*>(&address);
    UniqueFd connection(accept4(listener, name, &size, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (connection.is_open()) {
      Take(listener, std::move(connection), *name);
      continue;
    }
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) OnAcceptError(listener, errno);
    return;
  }
}

// The first in the queue is taken off and closed, so that its client hears of it, by means of the
// descriptor that is kept for that.
void Acceptor::OnAcceptError(int listener, int error) {
  ++counts_.failed;
  if (error == EMFILE || error == ENFILE) {
    spare_.Reset();
    UniqueFd(accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)).Reset();
    spare_ = OpenSpare();
  }
  absl::SleepFor(kAcceptPause);
}

bool Acceptor::HasRoom(const Peer& peer) const {
  return std::ssize(connections_) < connections_max_ && peer.open < ShareOf(connections_max_);
}

void Acceptor::Refill(Peer& peer) const {
  const absl::Time now = absl::Now();
  const double rate = limits_.connection_rate_max;
  peer.may_open = std::min(rate, peer.may_open + rate * absl::ToDoubleSeconds(now - peer.since));
  peer.since = now;
}

void Acceptor::Take(int listener, UniqueFd connection, const sockaddr& address) {
  const int fd = connection.get();
  // gRPC has closed what had the number.
  if (const auto old = connections_.find(fd); old != connections_.end()) Forget(old);
  const std::string name = PeerOf(address);
  const auto find = [&]() -> Peer& {
    const auto [found, is_new] = peers_.try_emplace(name);
    if (is_new) found->second = {0, static_cast<double>(limits_.connection_rate_max), absl::Now()};
    return found->second;
  };
  if (!HasRoom(find()) && absl::Now() - swept_ >= kSweepPeriodMin) Sweep();
  Peer& peer = find();  // which the sweep may have taken away
  Refill(peer);
  struct stat file;
  if (!HasRoom(peer) || peer.may_open < 1 || fstat(fd, &file) != 0) {
    ++counts_.refused;
    return;
  }
  SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  connections_.emplace(fd, Connection{file.st_ino, name, absl::Now()});
  ++handed_;
  ++peer.open;
  --peer.may_open;
  ++counts_.open;
  grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters handed;
  handed.listener_fd = listener;
  handed.fd = connection.Release();
  server_->HandleNewConnection(&handed);
}

void Acceptor::Forget(std::unordered_map<int, Connection>::iterator connection) {
  --peers_.at(connection->second.peer).open;
  connections_.erase(connection);
  --counts_.open;
}

void Acceptor::Sweep() {
  swept_ = absl::Now();
  for (auto next = connections_.begin(); next != connections_.end();) {
    const auto connection = next++;
    struct stat file;
    if (fstat(connection->first, &file) != 0 || file.st_ino != connection->second.inode) {
      Forget(connection);
    }
  }
  for (auto next = peers_.begin(); next != peers_.end();) {
    const auto peer = next++;
    Refill(peer->second);
    if (peer->second.open == 0 && peer->second.may_open >= limits_.connection_rate_max) {
      peers_.erase(peer);
    }
  }
  if (handshakes_ != nullptr) CountHandshakes();
}

// gRPC says that a handshake was done, and not on which connection. Of one that is open and may
// still be at it nothing is known; all others were done, or have failed.
void Acceptor::CountHandshakes() {
  const absl::Time begun = swept_ - limits_.handshake_max - kSweepPeriod;
  const auto young =
      std::count_if(connections_.begin(), connections_.end(),
                    [begun](const auto& connection) { return connection.second.since > begun; });
  const uint64_t known = *handshakes_ + static_cast<uint64_t>(young) + handshakes_failed_;
  if (known >= handed_) return;
  counts_.handshakes_failed += handed_ - known;
  handshakes_failed_ += handed_ - known;
}

}  // namespace annulus
