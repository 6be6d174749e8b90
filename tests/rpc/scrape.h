// What a metrics endpoint of this machine tells, for tests.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "tests/catch.h"

namespace annulus::test {

inline int ConnectToLoopback(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  return fd;
}

// What the port answers to these bytes, until it closes the connection.
inline std::string AskLoopback(int port, const std::string& request) {
  const int fd = ConnectToLoopback(port);
  REQUIRE(write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size()));
  std::string text;
  char part[4096];
  for (ssize_t n = 0; (n = read(fd, part, sizeof(part))) > 0;) text.append(part, n);
  close(fd);
  return text;
}

// A request for a page, on a connection of its own.
inline std::string HttpRequest(const std::string& method, const std::string& path) {
  return method + " " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
}

inline std::string Scrape(int port) {
  return AskLoopback(port, HttpRequest("GET", "/metrics"));
}

// The value of the series "name{labels}" in what was scraped; it must be there.
inline double ValueOf(const std::string& text, const std::string& series) {
  const size_t at = text.find("\n" + series + " ");
  INFO(series << " in " << text);
  REQUIRE(at != std::string::npos);
  return std::strtod(text.c_str() + at + series.size() + 2, nullptr);
}

}  // namespace annulus::test
