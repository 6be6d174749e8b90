// Connections from strangers: many, silent, full of garbage, more than there are descriptors.
// Others are served meanwhile, and everybody afterwards.
#include <grpcpp/client_context.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <csignal>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/client.h"
#include "base/rng.h"
#include "runtime/server/data_server.h"
#include "runtime/worker/grants.h"
#include "tests/cli/program.h"
#include "tests/reliability.h"
#include "tests/rpc/raw_server.h"
#include "tests/security/relay.h"

namespace annulus {
namespace {

using test::ConnectTo;
using test::PortIn;
using test::Program;
using test::Relay;

// A call over a connection of its own.
grpc::Status StatusOf(const std::string& endpoint,
                      absl::Duration patience = absl::Milliseconds(1000)) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + patience));
  v1::ClusterStatus reply;
  return v1::Annulus::NewStub(MakeChannel(endpoint))->Status(&context, {}, &reply);
}

// How long until it is served.
absl::Duration TimeUntilServed(const std::string& endpoint) {
  const absl::Time begin = absl::Now();
  while (absl::Now() - begin < absl::Seconds(60) && !StatusOf(endpoint).ok()) {
    absl::SleepFor(absl::Milliseconds(20));
  }
  return absl::Now() - begin;
}

// Whether the other side closes it within some time.
bool IsClosed(const UniqueFd& connection, absl::Duration within) {
  const absl::Time end = absl::Now() + within;
  char bytes[4096];
  while (absl::Now() < end) {
    pollfd watched = {connection.get(), POLLIN, 0};
    if (poll(&watched, 1, 50) == 1 && recv(connection.get(), bytes, sizeof(bytes), 0) <= 0) {
      return true;
    }
  }
  return false;
}

int64_t ResidentBytes(pid_t pid) {
  int64_t all = 0, resident = 0;
  std::ifstream(absl::StrCat("/proc/", pid, "/statm")) >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

TEST_CASE("a peer has at most half of the connections, and they are free once they are closed") {
  const RawServer raw({.connections = {.connections_max = 8}});
  REQUIRE(StatusOf(raw.endpoint()).ok());
  std::vector<UniqueFd> connections;
  for (int i = 0; i < 6; ++i) {
    connections.push_back(ConnectTo(PortIn(raw.endpoint()), "127.0.0.9"));
    REQUIRE(connections.back().is_open());
  }
  for (size_t i = 0; i < 6; ++i) {
    CAPTURE(i);
    CHECK(IsClosed(connections[i], absl::Milliseconds(i < 4 ? 100 : 10'000)) == (i >= 4));
  }
  CHECK(StatusOf(raw.endpoint()).ok());
  const Relay relay("127.0.0.9", raw.endpoint());
  CHECK_FALSE(StatusOf(relay.endpoint()).ok());
  connections.clear();
  CHECK(TimeUntilServed(relay.endpoint()) < absl::Seconds(30));
}

TEST_CASE("a peer that connects over and over again is slowed down, and nobody else") {
  const RawServer raw({.connections = {.connection_rate_max = 10}});
  int closed = 0;
  for (int i = 0; i < 40; ++i) {
    closed += IsClosed(ConnectTo(PortIn(raw.endpoint()), "127.0.0.9"), absl::Milliseconds(20));
  }
  CHECK(closed >= 10);  // it takes a second, or several where others use this machine
  CHECK(StatusOf(raw.endpoint(), absl::Seconds(10)).ok());
  const Relay relay("127.0.0.9", raw.endpoint());
  CHECK(TimeUntilServed(relay.endpoint()) < absl::Seconds(30));
}

TEST_CASE("who does not complete a handshake in time is cut") {
  const RawServer raw({.connections = {.handshake_max = absl::Milliseconds(300)}});
  const UniqueFd silent = ConnectTo(PortIn(raw.endpoint()));
  const UniqueFd slow = ConnectTo(PortIn(raw.endpoint()));
  CHECK(send(slow.get(), "PRI * HTTP", 10, MSG_NOSIGNAL) == 10);
  CHECK(IsClosed(silent, absl::Seconds(20)));
  CHECK(IsClosed(slow, absl::Seconds(20)));
}

TEST_CASE("a server listens where it is told, and the same port is not taken twice") {
  FakeService service;
  const auto listens = [&](const std::string& listen) {
    return RpcServer::Start({.listen = listen, .service = &service});
  };
  for (const char* host : {"127.0.0.1", "0.0.0.0", "localhost"}) {
    CAPTURE(host);
    auto server = listens(absl::StrCat(host, ":0"));
    REQUIRE(server.ok());
    const std::string here = absl::StrCat("127.0.0.1:", (*server)->port());
    CHECK(StatusOf(here).ok());
    CHECK(absl::IsUnavailable(listens(here).status()));
    (*server)->Shutdown(absl::Seconds(1));
    CHECK_FALSE(StatusOf(here).ok());
    CHECK(listens(here).ok());
  }
  if (auto both = listens("[::]:0"); both.ok()) {
    CHECK(StatusOf(absl::StrCat("127.0.0.1:", (*both)->port())).ok());
  }
}

// More connections than it has descriptors, all closed again: how long until it serves.
absl::Duration OverrunDescriptors(const std::string& endpoint) {
  std::vector<UniqueFd> connections;
  for (int i = 0; i < 600; ++i) connections.push_back(ConnectTo(PortIn(endpoint)));
  absl::SleepFor(absl::Seconds(1));
  connections.clear();
  return TimeUntilServed(endpoint);
}

TEST_CASE("a coordinator that ran out of descriptors serves again once there are some") {
  test::ReliabilityRow row{.number = 12,
                           .fault = "more connections than descriptors",
                           .load = "600 connections at 256 descriptors",
                           .bar = "served again within 5 s",
                           .figure = ""};
  rlimit before;
  REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
  const rlimit few = {256, before.rlim_max};
  const rlimit enough = {std::min<rlim_t>(before.rlim_max, 2048), before.rlim_max};
  REQUIRE(setrlimit(RLIMIT_NOFILE, &few) == 0);
  auto program = std::make_unique<Program>(Arguments{"coordinator", "--listen", "127.0.0.1:0"});
  const std::string endpoint = program->ReadLine().substr(6);
  REQUIRE(setrlimit(RLIMIT_NOFILE, &enough) == 0);
  const absl::Duration bounded = OverrunDescriptors(endpoint);
  // The same where the bound on connections does not help: descriptors become few afterwards.
  const rlimit fewer = {64, before.rlim_max};
  REQUIRE(prlimit(program->pid(), RLIMIT_NOFILE, &fewer, nullptr) == 0);
  const absl::Duration exhausted = OverrunDescriptors(endpoint);
  REQUIRE(setrlimit(RLIMIT_NOFILE, &before) == 0);
  row.figure = absl::StrCat("after ", absl::FormatDuration(bounded), "; without the bound after ",
                            absl::FormatDuration(exhausted));
  row.met = std::max(bounded, exhausted) < absl::Seconds(5);
  test::Tell(row);
  CHECK(std::max(bounded, exhausted) < absl::Seconds(20));
  program->Signal(SIGTERM);
  CHECK(program->Wait().code == 0);
}

// Something that is no client: nothing, noise, or the beginning of HTTP/2 and then noise.
void SendGarbage(int port, Rng& rng) {
  const UniqueFd connection = ConnectTo(port, "127.0.0.9");
  if (!connection.is_open()) return;
  std::string bytes(rng.Below(512), '\0');
  for (char& c : bytes) c = static_cast<char>(rng.Next());
  switch (rng.Below(5)) {
    case 0:
      return;
    case 1:
      bytes = "GET / HTTP/1.1\r\n\r\n" + bytes;
      break;
    case 2:
      bytes = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes;
      break;
    case 3:  // and its settings
      bytes = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + std::string("\0\0\0\4\0\0\0\0\0", 9) + bytes;
      break;
    default:
      break;
  }
  send(connection.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  if (rng.Below(2) == 0) shutdown(connection.get(), SHUT_WR);
}

// The processes survive, serve others meanwhile and hold no more memory at the end.
void TryGarbage(int connections) {
  Program coordinator({"coordinator", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"});
  const std::string endpoint = coordinator.ReadLine().substr(6);
  Program worker({"worker", "--coordinator", endpoint, "--backend", "cpu", "--threads", "1",
                  "--kv-bytes-limit", "64M", "--data-listen", "127.0.0.1:0"});
  const auto client = Client::Connect({.endpoint = endpoint});
  REQUIRE(client.ok());
  std::string data;
  for (int i = 0; i < 200 && data.empty(); ++i) {
    const auto status = (*client)->Status();
    if (status.ok() && !status->workers.empty()) data = status->workers[0].data_address;
    absl::SleepFor(absl::Milliseconds(50));
  }
  REQUIRE(!data.empty());
  const uint64_t seed = 11;
  INFO("seed " << seed);
  Rng rng(seed);
  const std::string http = absl::StrCat("127.0.0.1:", coordinator.HttpPort());
  struct Door {
    const char* name;
    pid_t pid;
    std::string address;
  };
  const std::vector<Door> doors = {{"client", coordinator.pid(), endpoint},
                                   {"data", worker.pid(), data},
                                   {"HTTP", coordinator.pid(), http}};
  for (const auto& [name, pid, door] : doors) {
    CAPTURE(name, door);
    for (int i = 0; i < connections / 5; ++i) SendGarbage(PortIn(door), rng);
    const int64_t before = ResidentBytes(pid);
    int served = 0, asked = 0;
    for (int i = 0; i < connections; ++i) {
      SendGarbage(PortIn(door), rng);
      if (i % (connections / 20) != 0) continue;
      ++asked;
      served += (*client)->Status().ok() && StatusOf(endpoint, absl::Seconds(10)).ok();
    }
    CHECK(served == asked);
#ifndef __SANITIZE_ADDRESS__  // which keeps what was freed
    CHECK(ResidentBytes(pid) - before < int64_t{32} << 20);
#endif
    REQUIRE(StatusOf(endpoint, absl::Seconds(10)).ok());
    test::Tell({.number = 12,
                .fault = absl::StrCat("garbage on the ", name, " port"),
                .load = absl::StrCat(connections, " connections"),
                .bar = "process survives, others are served, memory flat",
                .figure = absl::StrCat(served, " of ", asked, " calls served, ",
                                       (ResidentBytes(pid) - before) >> 10, " KiB more"),
                .met = served == asked && ResidentBytes(pid) - before < int64_t{32} << 20});
  }
}

TEST_CASE("garbage on every port that clients may reach harms nobody") {
  TryGarbage(2000);
}

TEST_CASE("a hundred thousand connections of garbage on every port", "[.garbage]") {
  TryGarbage(100'000);
}

}  // namespace
}  // namespace annulus
