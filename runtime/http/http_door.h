// HttpDoor: a process's small pages for probes, scrapers and people, over HTTP/1.1 in plain text.
// One thread reads and answers all connections, so that however many stand half open none holds
// another up; they are bounded in all and by peer (base/peer_address.h), and cut when idle, or when
// a request takes too long from its first byte to the last one of its answer: those
// beyond a bound are closed at once, and counted. GET and HEAD alone; no
// page reads anything of a request but its path. Whoever reaches the address may read all pages: it
// is for loopback or the operator's network. Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

struct MHD_Daemon;
struct sockaddr;

namespace annulus {

struct HttpAnswer {
  int code = 200;
  std::string type = "text/plain; charset=utf-8";
  std::string body;
};
// Called by the door's thread, which it may hold for about a second.
using HttpPage = std::function<HttpAnswer()>;

// 200 "ok", or 503 with what is wrong: what probes ask.
HttpAnswer ProbeAnswer(const absl::Status& status);

// What a door has seen; read by metrics. Thread-safe.
struct HttpCounts {
  std::atomic<int64_t> open = 0;
  std::atomic<uint64_t> refused = 0;  // beyond a bound
};

class HttpDoor {
 public:
  // Of a request and its answer.
  static constexpr absl::Duration kRequestMax = absl::Seconds(10);

  // `listen` is "host:port", port 0: any free one; pages by path, "/metrics". `counts`, if any,
  // outlives this. INVALID_ARGUMENT and UNAVAILABLE name the address.
  static absl::StatusOr<std::unique_ptr<HttpDoor>> Start(const std::string& listen,
                                                         std::map<std::string, HttpPage> pages,
                                                         HttpCounts* counts = nullptr);
  ~HttpDoor();
  HttpDoor(const HttpDoor&) = delete;
  HttpDoor& operator=(const HttpDoor&) = delete;

  int port() const { return port_; }

 private:
  struct Handler;
  HttpDoor(std::map<std::string, HttpPage> pages, HttpCounts* counts)
      : pages_(std::move(pages)), counts_(counts != nullptr ? *counts : own_counts_) {}
  bool HasRoom(const sockaddr& address) const;
  void Count(const sockaddr& address, int change);
  // Of the connection with this socket: its next request may begin; there will be none.
  void Begin(int fd);
  void Forget(int fd);
  // Cuts connections whose request takes too long, until the end.
  void Watch();

  const std::map<std::string, HttpPage> pages_;
  HttpCounts own_counts_;
  HttpCounts& counts_;
  std::map<std::string, int> open_;  // by peer; the thread's own
  MHD_Daemon* daemon_ = nullptr;
  int port_ = 0;
  std::mutex mutex_;                 // of all that follows
  std::map<int, absl::Time> began_;  // by socket, which is open as long as it is here
  std::condition_variable stop_;
  bool stopping_ = false;
  std::thread watch_;
};

}  // namespace annulus
