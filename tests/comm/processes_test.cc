// UCX between real processes: kill -9 is noticed at once, SIGSTOP is not, and the bytes counted are
// those of the wire. A child is this program again, at one of the hidden cases below.
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/child.h"
#include "tests/comm/killed_processes.h"
#include "tests/comm/test_group.h"

namespace annulus {
namespace {

constexpr uint64_t kChannel = 31;
constexpr uint32_t kPostReceive = 2;  // asks the child for a receive of kLargeBytes
constexpr size_t kLargeBytes = size_t{64} << 20;

// Echoes messages, and is rank 1 of an exchange in which it posts what it is asked for.
void EchoForever(const char* transports) {
  TestFabrics fabrics(std::string("ucx ") + transports);
  TestNode node(fabrics);
  std::cout << "\naddress " << node.messenger().address() << std::endl;
  std::string parent;
  std::getline(std::cin, parent);
  const auto exchange =
      node.fabric->OpenExchange(kChannel, 1, {parent, node.messenger().address()});
  std::vector<char> memory(kLargeBytes);
  node.on_message = [&](PeerId from) {
    if (node.messages.back().second.type == kPostReceive) {
      (void)(*exchange)->Post({}, {{0, memory.data(), memory.size()}});
    }
    (void)node.messenger().Send(from, std::move(node.messages.back().second));
    node.messages.clear();
  };
  for (;;) node.messenger().Poll(absl::Seconds(1));
}

TEST_CASE("child: echo over tcp", "[.child]") {
  EchoForever("tcp");
}
TEST_CASE("child: echo over shm", "[.child]") {
  EchoForever("shm,tcp");
}

struct Pair {
  explicit Pair(bool shm)
      : fabrics(shm ? "ucx shm,tcp" : "ucx tcp"),
        child(shm ? "child: echo over shm" : "child: echo over tcp"),
        node(fabrics) {
    address = child.ReadLine("address ");
    child.WriteLine(node.messenger().address());
    peer = *node.messenger().Connect(address);
    auto opened = node.fabric->OpenExchange(kChannel, 0, {node.messenger().address(), address});
    REQUIRE(opened.ok());
    exchange = *std::move(opened);
    REQUIRE(Echo());
  }

  bool Echo(absl::Duration limit = absl::Seconds(20)) {
    const std::string text = "echo " + std::to_string(++echoes);
    REQUIRE(node.messenger().Send(peer, {1, text, Buffer(8192)}).ok());
    return fabrics.PollUntil(
        {&node.messenger()},
        [&] { return !node.messages.empty() && node.messages.back().second.body == text; }, limit);
  }

  TestFabrics fabrics;
  Child child;
  TestNode node;
  std::string address;
  PeerId peer = 0;
  int echoes = 0;
  std::unique_ptr<Exchange> exchange;
};

TEST_CASE("kill -9 of a peer is noticed in less than 0.5 s", "[processes]") {
  const bool shm = GENERATE(false, true);
  const bool under_load = GENERATE(false, true);
  CAPTURE(shm, under_load);
  Pair pair(shm);
  std::vector<char> memory(size_t{8} << 20);
  const auto sent = pair.exchange->Post({{1, memory.data(), memory.size()}}, {});
  const auto received = pair.exchange->Post({}, {{1, memory.data(), memory.size()}});
  REQUIRE((sent.ok() && received.ok()));
  for (int i = 0; i < 50; ++i) REQUIRE(pair.Echo());
  if (under_load) {
    for (int i = 0; i < 16; ++i) {
      REQUIRE(pair.node.messenger().Send(pair.peer, {1, "", Buffer(size_t{1} << 20)}).ok());
    }
    pair.node.messenger().Poll(absl::Milliseconds(1));
  }
  const absl::Time start = absl::Now();
  pair.child.Kill();
  CHECK(pair.fabrics.PollUntil(
      {&pair.node.messenger()}, [&] { return !pair.node.downs.empty(); }, absl::Seconds(5)));
  const absl::Duration noticed = absl::Now() - start;
  CHECK(noticed < absl::Milliseconds(500));
  CHECK(absl::IsNotFound(pair.node.messenger().Send(pair.peer, {1, "", {}})));
  const ProgressThread progress(pair.node.messenger());
  const absl::Time deadline = start + absl::Milliseconds(500);
  CHECK(absl::IsUnavailable(pair.exchange->Wait(*sent, deadline)));
  CHECK(absl::IsUnavailable(pair.exchange->Wait(*received, deadline)));
  CHECK(absl::IsUnavailable(pair.exchange->Post({}, {}).status()));
  WARN((shm ? "shm" : "tcp") << ": noticed after " << absl::ToInt64Microseconds(noticed) << " us");
}

TEST_CASE("a stopped peer is not reported: that is for heartbeats", "[processes]") {
  const bool shm = GENERATE(false, true);
  CAPTURE(shm);
  Pair pair(shm);
  pair.child.Pause();
  CHECK(!pair.Echo(absl::Milliseconds(700)));
  CHECK(pair.node.downs.empty());
  pair.child.Resume();
  CHECK(pair.Echo());
  CHECK(pair.node.downs.empty());
}

TEST_CASE("Abort comes back soon though the peer takes nothing", "[processes]") {
  const bool shm = GENERATE(false, true);
  CAPTURE(shm);
  Pair pair(shm);
  REQUIRE(pair.node.messenger().Send(pair.peer, {kPostReceive, "", {}}).ok());
  REQUIRE(pair.Echo());
  pair.child.Pause();
  auto memory = std::make_unique<std::vector<char>>(kLargeBytes);
  REQUIRE(pair.exchange->Post({{1, memory->data(), memory->size()}}, {}).ok());
  for (int i = 0; i < 20; ++i) pair.node.messenger().Poll(absl::Milliseconds(1));
  const uint64_t sent = pair.exchange->counters().bytes_sent;
  CHECK(sent < kLargeBytes);
  const absl::Time start = absl::Now();
  pair.exchange->Abort(absl::CancelledError("enough"));
  CHECK(absl::Now() - start < absl::Milliseconds(500));
  memory.reset();
  pair.child.Resume();
  CHECK(pair.Echo());
  WARN((shm ? "shm" : "tcp") << ": stuck after " << sent << " bytes");
}

TEST_CASE("a stopped peer with bytes on the way can be left, and come back", "[processes]") {
  const bool shm = GENERATE(false, true);
  const bool close = GENERATE(false, true);
  CAPTURE(shm, close);
  Pair pair(shm);
  pair.child.Pause();
  for (int i = 0; i < 32; ++i) {
    REQUIRE(pair.node.messenger().Send(pair.peer, {1, "", Buffer(size_t{1} << 20)}).ok());
  }
  for (int i = 0; i < 20; ++i) pair.node.messenger().Poll(absl::Milliseconds(1));
  const absl::Time start = absl::Now();
  if (close) {
    pair.exchange.reset();
    pair.node.fabric.reset();
    CHECK(absl::Now() - start < absl::Seconds(2));
    return;
  }
  pair.node.messenger().Disconnect(pair.peer);
  CHECK(absl::Now() - start < absl::Milliseconds(100));
  const auto again = pair.node.messenger().Connect(pair.address);
  REQUIRE(again.ok());
  pair.peer = *again;
  pair.child.Resume();
  CHECK(pair.Echo());
  CHECK(pair.node.downs.empty());
}

TEST_CASE("child: a rank of a ring", "[.child]") {
  TestFabrics fabrics(absl::StrCat("ucx ", kKilledTransports));
  TestNode node(fabrics);
  const ProgressThread progress(node.messenger());
  KilledPart part = ReadKilledPart(node.messenger().address());
  part.ring.size_bytes = size_t{4} << 20;
  std::vector<std::byte> memory(2 * part.ring.size_bytes);
  const auto exchange = node.fabric->OpenExchange(kChannel, part.rank, part.addresses);
  REQUIRE(exchange.ok());
  TellSeen(RunKilledInRing(part.ring, **exchange, memory.data(), [] { raise(SIGKILL); }));
}

TEST_CASE("a process killed at any step of a ring ends it for the others, by an error",
          "[processes]") {
  KillProcessesInRings("child: a rank of a ring", GENERATE(3, 5));
}

// Bytes that the loopback interface of this network namespace has sent.
uint64_t LoopbackBytes() {
  std::ifstream file("/proc/self/net/dev");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    if (name != "lo:") continue;
    uint64_t bytes = 0;
    words >> bytes;
    return bytes;
  }
  FAIL("no loopback interface");
  return 0;
}

// Prints what the loopback interface carried while an exchange moved kLargeBytes.
void MeasureWire(const std::string& transports) {
  // Alone in a network namespace the wire's bytes are ours only; without the right to have one,
  // others may add to them.
  const bool alone = unshare(CLONE_NEWNET) == 0;
  if (alone) {
    const int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ifreq request = {};
    std::snprintf(request.ifr_name, sizeof request.ifr_name, "lo");
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    REQUIRE(ioctl(any, SIOCSIFFLAGS, &request) == 0);
    close(any);
  }
  TestGroup group("ucx " + transports, 2);
  std::vector<char> memory[2] = {std::vector<char>(kLargeBytes), std::vector<char>(kLargeBytes)};
  const uint64_t before = LoopbackBytes();
  group.Run([&](Exchange& exchange) {
    char* data = memory[exchange.rank()].data();
    const auto ticket = exchange.rank() == 0 ? exchange.Post({{1, data, kLargeBytes}}, {})
                                             : exchange.Post({}, {{0, data, kLargeBytes}});
    return ticket.ok() ? exchange.Wait(*ticket, absl::Now() + absl::Seconds(60)) : ticket.status();
  });
  const uint64_t wire = LoopbackBytes() - before;
  CHECK(group.exchanges[0]->counters().bytes_sent == kLargeBytes);
  CHECK(group.exchanges[1]->counters().bytes_received == kLargeBytes);
  std::cout << (alone ? "\nnetwork alone" : "\nnetwork shared") << std::endl
            << "wire " << wire << std::endl;
}

TEST_CASE("child: the wire under tcp", "[.child]") {
  MeasureWire("tcp");
}
TEST_CASE("child: the wire under shm", "[.child]") {
  MeasureWire("shm,tcp");
}

TEST_CASE("payload counted is what the tcp interface carried, within 2%", "[processes]") {
  Child child("child: the wire under tcp");
  const bool alone = child.ReadLine("network ") == "alone";
  const uint64_t wire = std::stoull(child.ReadLine("wire "));
  CHECK(child.Join() == 0);
  CHECK(wire >= kLargeBytes);
  if (alone) CHECK(wire < kLargeBytes + kLargeBytes / 50);
  WARN("64 MiB over tcp: " << wire << " bytes on the wire");
}

TEST_CASE("over shared memory the payload does not touch the interface", "[processes]") {
  Child child("child: the wire under shm");
  const bool alone = child.ReadLine("network ") == "alone";
  const uint64_t wire = std::stoull(child.ReadLine("wire "));
  CHECK(child.Join() == 0);
  if (alone) CHECK(wire < kLargeBytes / 50);
  WARN("64 MiB over shm: " << wire << " bytes on the wire");
}

}  // namespace
}  // namespace annulus
