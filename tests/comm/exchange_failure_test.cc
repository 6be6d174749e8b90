// The contract of Exchange when things fail: refused operations, unequal sizes, aborts, deadlines
// and peers that are gone.
#include <algorithm>
#include <cstring>

#include "base/rng.h"
#include "tests/comm/test_group.h"

namespace annulus {
namespace {

using Bytes = std::vector<uint8_t>;

std::string Kind() {
  return GENERATE(std::string("threads"), "local", "ucx tcp", "ucx shm,tcp");
}

absl::Time Soon() {
  return absl::Now() + absl::Seconds(10);
}

TEST_CASE("operations outside of the world are refused", "[exchange]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  TestGroup group(kind, 2);
  Exchange& exchange = *group.exchanges[0];
  char byte = 0;
  CHECK(absl::IsInvalidArgument(exchange.Post({{2, &byte, 1}}, {}).status()));
  CHECK(absl::IsInvalidArgument(exchange.Post({}, {{-1, &byte, 1}}).status()));
  CHECK(absl::IsInvalidArgument(exchange.Post({{1, nullptr, 1}}, {}).status()));
  CHECK(absl::IsInvalidArgument(exchange.Wait(12345, Soon())));
  const auto nothing = exchange.Post({}, {});
  REQUIRE(nothing.ok());
  CHECK(exchange.Wait(*nothing, Soon()).ok());
}

TEST_CASE("unequal sizes fail both sides with both sizes named", "[exchange]") {
  const std::string kind = Kind();
  const bool send_first = GENERATE(false, true);
  CAPTURE(kind, send_first);
  TestGroup group(kind, 2);
  Bytes out(100'000, 1);
  Bytes in(100'001, 7);
  absl::StatusOr<Exchange::Ticket> sent;
  if (send_first) sent = group.exchanges[0]->Post({{1, out.data(), out.size()}}, {});
  const auto received = group.exchanges[1]->Post({}, {{0, in.data(), in.size()}});
  if (!send_first) sent = group.exchanges[0]->Post({{1, out.data(), out.size()}}, {});
  REQUIRE((sent.ok() && received.ok()));
  for (const absl::Status& status :
       {group.exchanges[0]->Wait(*sent, Soon()), group.exchanges[1]->Wait(*received, Soon())}) {
    CAPTURE(status.ToString());
    CHECK(absl::IsInternal(status));
    CHECK(status.message().find("100000") != absl::string_view::npos);
    CHECK(status.message().find("100001") != absl::string_view::npos);
  }
  CHECK(in == Bytes(100'001, 7));
}

TEST_CASE("unequal sizes to itself fail as well", "[exchange]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  TestGroup group(kind, 2);
  char out[2] = {};
  char in[1] = {};
  const auto ticket = group.exchanges[0]->Post({{0, out, 2}}, {{0, in, 1}});
  REQUIRE(ticket.ok());
  CHECK(absl::IsInternal(group.exchanges[0]->Wait(*ticket, Soon())));
}

TEST_CASE("a deadline leaves the ticket in flight", "[exchange]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  TestGroup group(kind, 2);
  int in = 0;
  const int out = 5;
  const auto received = group.exchanges[1]->Post({}, {{0, &in, sizeof in}});
  REQUIRE(received.ok());
  const absl::Time start = absl::Now();
  CHECK(absl::IsDeadlineExceeded(
      group.exchanges[1]->Wait(*received, start + absl::Milliseconds(30))));
  CHECK(absl::Now() - start >= absl::Milliseconds(29));
  CHECK(absl::IsDeadlineExceeded(group.exchanges[1]->Wait(*received, absl::InfinitePast())));
  const auto sent = group.exchanges[0]->Post({{1, &out, sizeof out}}, {});
  REQUIRE(sent.ok());
  CHECK(group.exchanges[1]->Wait(*received, absl::InfiniteFuture()).ok());
  CHECK(group.exchanges[0]->Wait(*sent, Soon()).ok());
  CHECK(in == 5);
}

TEST_CASE("an abort fails everybody, with its reason here and UNAVAILABLE there", "[exchange]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  TestGroup group(kind, 3);
  Bytes in(1000);
  std::vector<Exchange::Ticket> tickets;
  for (int rank = 0; rank < 3; ++rank) {
    const auto ticket = group.exchanges[rank]->Post({}, {{(rank + 1) % 3, in.data(), in.size()}});
    REQUIRE(ticket.ok());
    tickets.push_back(*ticket);
  }
  group.exchanges[1]->Abort(absl::DataLossError("page 7 is bad"));
  CHECK(absl::IsDataLoss(group.exchanges[1]->Wait(tickets[1], Soon())));
  for (const int rank : {0, 2}) {
    const absl::Status status = group.exchanges[rank]->Wait(tickets[rank], Soon());
    CAPTURE(status.ToString());
    CHECK(absl::IsUnavailable(status));
    CHECK(status.message().find("rank 1 aborted") != absl::string_view::npos);
    CHECK(status.message().find("page 7 is bad") != absl::string_view::npos);
    CHECK(absl::IsUnavailable(group.exchanges[rank]->Post({}, {}).status()));
  }
  CHECK(absl::IsDataLoss(group.exchanges[1]->Post({}, {}).status()));
  group.exchanges[1]->Abort(absl::CancelledError("again"));
}

TEST_CASE("an abort before the other side has opened reaches it", "[exchange]") {
  const std::string kind = GENERATE(std::string("local"), "ucx tcp", "ucx shm,tcp");
  CAPTURE(kind);
  TestGroup group(kind, 2);
  group.exchanges.clear();
  group.Open(0, 6);
  group.exchanges[0]->Abort(absl::CancelledError("no"));
  group.exchanges.clear();
  absl::SleepFor(absl::Milliseconds(50));
  group.Open(1, 6);
  char byte;
  const auto ticket = group.exchanges[0]->Post({}, {{0, &byte, 1}});
  const absl::Status status =
      ticket.ok() ? group.exchanges[0]->Wait(*ticket, Soon()) : ticket.status();
  CHECK(absl::IsUnavailable(status));
}

TEST_CASE("after Abort no memory is touched", "[exchange]") {
  const std::string kind = Kind();
  const uint64_t seed = 99;
  CAPTURE(kind, seed);
  Rng rng(seed);
  const size_t size_bytes = size_t{16} << 20;
  for (int round = 0; round < 8; ++round) {
    CAPTURE(round);
    TestGroup group(kind, 2);
    const Bytes out(size_bytes, 0xAA);
    Bytes in(size_bytes, 0);
    // One thread a side, as the contract has it: "threads" copies within Post.
    std::thread sender([&] {
      auto own = std::make_unique<Bytes>(out);
      const auto ticket = group.exchanges[0]->Post({{1, own->data(), size_bytes}}, {});
      if (round % 2 == 1) {
        absl::SleepFor(absl::Microseconds(rng.Below(4000)));
        group.exchanges[0]->Abort(absl::CancelledError("enough"));
        std::memset(own->data(), 0xBB, size_bytes);  // must not be seen by the receiver
      } else if (ticket.ok()) {
        (void)group.exchanges[0]->Wait(*ticket, Soon());
      }
    });
    const auto ticket = group.exchanges[1]->Post({}, {{0, in.data(), size_bytes}});
    if (round % 2 == 0) {
      absl::SleepFor(absl::Microseconds(rng.Below(4000)));
      group.exchanges[1]->Abort(absl::CancelledError("enough"));
      std::memset(in.data(), 0xCC, size_bytes);
      absl::SleepFor(absl::Milliseconds(5));
      CHECK(std::count(in.begin(), in.end(), 0xCC) == static_cast<long>(size_bytes));
    } else if (ticket.ok() && group.exchanges[1]->Wait(*ticket, Soon()).ok()) {
      CHECK(in == out);
    }
    CHECK(std::count(in.begin(), in.end(), 0xBB) == 0);
    sender.join();
  }
}

TEST_CASE("a rank that is gone fails the tickets that need it, and later posts", "[exchange]") {
  const std::string kind = GENERATE(std::string("local"), "ucx tcp", "ucx shm,tcp");
  CAPTURE(kind);
  TestGroup group(kind, 3);
  // The connections exist once something has moved.
  const char ping = 1;
  char pong[2] = {0, 0};
  const auto all = group.exchanges[2]->Post({{0, &ping, 1}, {1, &ping, 1}}, {});
  const auto to_0 = group.exchanges[0]->Post({}, {{2, &pong[0], 1}});
  const auto to_1 = group.exchanges[1]->Post({}, {{2, &pong[1], 1}});
  REQUIRE((all.ok() && to_0.ok() && to_1.ok()));
  REQUIRE(group.exchanges[0]->Wait(*to_0, Soon()).ok());
  REQUIRE(group.exchanges[1]->Wait(*to_1, Soon()).ok());
  REQUIRE(group.exchanges[2]->Wait(*all, Soon()).ok());

  Bytes in(100);
  const Bytes out(100, 9);
  const auto needs_2 = group.exchanges[0]->Post({}, {{2, in.data(), in.size()}});
  const auto needs_0 = group.exchanges[1]->Post({}, {{0, in.data(), in.size()}});
  const auto needs_1 = group.exchanges[0]->Post({{1, out.data(), out.size()}}, {});
  REQUIRE((needs_2.ok() && needs_0.ok() && needs_1.ok()));
  group.Kill(2);
  const absl::Time start = absl::Now();
  const absl::Status status = group.exchanges[0]->Wait(*needs_2, Soon());
  CAPTURE(status.ToString());
  CHECK(absl::IsUnavailable(status));
  CHECK(status.message().find("rank 2 is down") != absl::string_view::npos);
  CHECK(absl::Now() - start < absl::Milliseconds(500));
  CHECK(absl::IsUnavailable(group.exchanges[0]->Post({}, {}).status()));
  // What does not need it goes on.
  CHECK(group.exchanges[0]->Wait(*needs_1, Soon()).ok());
  CHECK(group.exchanges[1]->Wait(*needs_0, Soon()).ok());
  CHECK(in == out);
}

}  // namespace
}  // namespace annulus
