// HttpDoor: a process's small pages for probes, scrapers and people, over HTTP/1.1 in plain text.
// One thread reads and answers all connections, so that however many stand half open none holds
// another up; they are bounded in all and by address, and cut when idle. GET and HEAD alone; no
// page reads anything of a request but its path. Whoever reaches the address may read all pages: it
// is for loopback or the operator's network. Thread-safe.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

struct MHD_Daemon;

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

class HttpDoor {
 public:
  // `listen` is "host:port", port 0: any free one; pages by path, "/metrics". INVALID_ARGUMENT and
  // UNAVAILABLE name the address.
  static absl::StatusOr<std::unique_ptr<HttpDoor>> Start(const std::string& listen,
                                                         std::map<std::string, HttpPage> pages);
  ~HttpDoor();
  HttpDoor(const HttpDoor&) = delete;
  HttpDoor& operator=(const HttpDoor&) = delete;

  int port() const { return port_; }

 private:
  struct Handler;
  explicit HttpDoor(std::map<std::string, HttpPage> pages) : pages_(std::move(pages)) {}

  const std::map<std::string, HttpPage> pages_;
  MHD_Daemon* daemon_ = nullptr;
  int port_ = 0;
};

}  // namespace annulus
