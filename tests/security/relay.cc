#include "tests/security/relay.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstdlib>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace annulus::test {
namespace {

sockaddr_in AddressOf(const std::string& host, int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  ANNULUS_CHECK(inet_pton(AF_INET, host.c_str(), &address.sin_addr) == 1);
  return address;
}

}  // namespace

int PortIn(const std::string& endpoint) {
  return std::atoi(endpoint.substr(endpoint.rfind(':') + 1).c_str());
}

UniqueFd ConnectTo(int port, const std::string& from) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.is_open()) return fd;
  if (!from.empty()) {
    const sockaddr_in source = AddressOf(from, 0);
    ANNULUS_CHECK(bind(fd.get(), reinterpret_cast<const sockaddr*>(&source), sizeof(source)) == 0);
  }
  const sockaddr_in address = AddressOf("127.0.0.1", port);
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    fd.Reset();
  }
  return fd;
}

Relay::Relay(const std::string& from, const std::string& to) : from_(from), to_port_(PortIn(to)) {
  listener_ = UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const sockaddr_in address = AddressOf("127.0.0.1", 0);
  ANNULUS_CHECK(
      bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  ANNULUS_CHECK(listen(listener_.get(), 128) == 0);
  thread_ = std::thread([this] { Run(); });
}

Relay::~Relay() {
  stopping_ = true;
  thread_.join();
}

std::string Relay::endpoint() const {
  sockaddr_in address = {};
  socklen_t size = sizeof(address);
  getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size);
  return absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
}

void Relay::Run() {
  constexpr int kLookUpMs = 20;
  while (!stopping_) {
    std::vector<pollfd> watched = {{listener_.get(), POLLIN, 0}};
    for (const Pair& pair : pairs_) {
      watched.push_back({pair.near.get(), POLLIN, 0});
      watched.push_back({pair.far.get(), POLLIN, 0});
    }
    poll(watched.data(), watched.size(), kLookUpMs);
    size_t at = 1;
    for (auto next = pairs_.begin(); next != pairs_.end(); at += 2) {
      const auto pair = next++;
      const bool open = (watched[at].revents == 0 || Pass(pair->near.get(), pair->far.get())) &&
                        (watched[at + 1].revents == 0 || Pass(pair->far.get(), pair->near.get()));
      if (!open) pairs_.erase(pair);
    }
    if (watched[0].revents != 0) Accept();
  }
}

void Relay::Accept() {
  UniqueFd near(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!near.is_open()) return;
  UniqueFd far = ConnectTo(to_port_, from_);
  if (far.is_open()) pairs_.push_back({std::move(near), std::move(far)});
}

bool Relay::Pass(int from, int to) {
  char bytes[16 << 10];
  const ssize_t count = recv(from, bytes, sizeof(bytes), 0);
  if (count <= 0) return false;
  for (ssize_t sent = 0; sent < count;) {
    const ssize_t part = send(to, bytes + sent, static_cast<size_t>(count - sent), MSG_NOSIGNAL);
    if (part <= 0) return false;
    sent += part;
  }
  return true;
}

}  // namespace annulus::test
