// A way to a server on this machine that arrives from another address of it, so that a test has
// several peers. Bytes are passed on as they come. One thread of its own.
#pragma once

#include <atomic>
#include <list>
#include <string>
#include <thread>

#include "base/unique_fd.h"

namespace annulus::test {

class Relay {
 public:
  // `from`: an address of this machine, "127.0.0.9"; `to`: "127.0.0.1:port".
  Relay(const std::string& from, const std::string& to);
  ~Relay();

  std::string endpoint() const;

 private:
  struct Pair {
    UniqueFd near;
    UniqueFd far;
  };

  void Run();
  void Accept();
  // False once either side has ended.
  static bool Pass(int from, int to);

  const std::string from_;
  const int to_port_;
  UniqueFd listener_;
  std::atomic<bool> stopping_ = false;
  std::list<Pair> pairs_;
  std::thread thread_;
};

// A TCP connection to 127.0.0.1, from another address of this machine if `from` is not empty; none
// if it is refused.
UniqueFd ConnectTo(int port, const std::string& from = "");

int PortIn(const std::string& endpoint);

}  // namespace annulus::test
