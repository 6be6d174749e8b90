// The contract of Exchange when things fail: refused operations, unequal sizes, aborts and
// deadlines. Compiled into every program that has implementations (tests/comm/exchange_group.h).
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/rng.h"
#include "base/status.h"
#include "tests/comm/exchange_group.h"

namespace annulus {
namespace {

using Bytes = std::vector<uint8_t>;

std::string Kind() {
  return GENERATE(from_range(ExchangeKinds()));
}

absl::Time Soon() {
  return absl::Now() + absl::Seconds(10);
}

// OK if `status` has the code and its message holds the texts.
absl::Status ExpectError(const absl::Status& status, absl::StatusCode code,
                         absl::Span<const absl::string_view> texts = {}) {
  bool holds = status.code() == code;
  for (const absl::string_view text : texts) holds &= absl::StrContains(status.message(), text);
  return Expect(holds, absl::StrCat("got ", status.ToString(), ", expected ",
                                    absl::StatusCodeToString(code)));
}

TEST_CASE("operations outside of the world are refused", "[exchange]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  const auto group = MakeExchangeGroup(kind, 2);
  if (group == nullptr) return;
  group->Run([&](Exchange& exchange) -> absl::Status {
    if (exchange.rank() != 0) return absl::OkStatus();
    constexpr auto kRefused = absl::StatusCode::kInvalidArgument;
    char byte = 0;
    ANNULUS_RETURN_IF_ERROR(ExpectError(exchange.Post({{2, &byte, 1}}, {}).status(), kRefused));
    ANNULUS_RETURN_IF_ERROR(ExpectError(exchange.Post({}, {{-1, &byte, 1}}).status(), kRefused));
    ANNULUS_RETURN_IF_ERROR(ExpectError(exchange.Post({{1, nullptr, 1}}, {}).status(), kRefused));
    ANNULUS_RETURN_IF_ERROR(ExpectError(exchange.Wait(12345, Soon()), kRefused));
    ANNULUS_ASSIGN_OR_RETURN(const Exchange::Ticket nothing, exchange.Post({}, {}));
    return exchange.Wait(nothing, Soon());
  });
}

TEST_CASE("unequal sizes fail both sides with both sizes named", "[exchange]") {
  const std::string kind = Kind();
  const bool send_first = GENERATE(false, true);
  const size_t size_bytes = GENERATE(10, 100'000);  // MPI has ways of its own for small ones
  CAPTURE(kind, send_first, size_bytes);
  const auto group = MakeExchangeGroup(kind, 2);
  if (group == nullptr) return;
  group->Run([&](Exchange& exchange) -> absl::Status {
    const bool sends = exchange.rank() == 0;
    const Bytes out(size_bytes, 1);
    const Bytes untouched(size_bytes + 1, 7);
    Bytes in = untouched;
    if (sends != send_first) group->Barrier();
    ANNULUS_ASSIGN_OR_RETURN(const Exchange::Ticket ticket,
                             sends ? exchange.Post({{1, out.data(), out.size()}}, {})
                                   : exchange.Post({}, {{0, in.data(), in.size()}}));
    if (sends == send_first) group->Barrier();
    const absl::Status status = exchange.Wait(ticket, Soon());
    ANNULUS_RETURN_IF_ERROR(
        ExpectError(status, absl::StatusCode::kInternal,
                    {absl::StrCat(out.size(), " bytes"), absl::StrCat(in.size(), " bytes")}));
    return Expect(in == untouched, "memory was touched");
  });
}

TEST_CASE("unequal sizes to itself fail as well", "[exchange]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  const auto group = MakeExchangeGroup(kind, 2);
  if (group == nullptr) return;
  group->Run([&](Exchange& exchange) -> absl::Status {
    char out[2] = {};
    char in[1] = {};
    ANNULUS_ASSIGN_OR_RETURN(
        const Exchange::Ticket ticket,
        exchange.Post({{exchange.rank(), out, 2}}, {{exchange.rank(), in, 1}}));
    return ExpectError(exchange.Wait(ticket, Soon()), absl::StatusCode::kInternal);
  });
}

TEST_CASE("a deadline leaves the ticket in flight", "[exchange]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  const auto group = MakeExchangeGroup(kind, 2);
  if (group == nullptr) return;
  group->Run([&](Exchange& exchange) -> absl::Status {
    if (exchange.rank() == 0) {
      const int out = 5;
      group->Barrier();
      ANNULUS_ASSIGN_OR_RETURN(const Exchange::Ticket sent,
                               exchange.Post({{1, &out, sizeof out}}, {}));
      return exchange.Wait(sent, Soon());
    }
    constexpr auto kLate = absl::StatusCode::kDeadlineExceeded;
    int in = 0;
    ANNULUS_ASSIGN_OR_RETURN(const Exchange::Ticket received,
                             exchange.Post({}, {{0, &in, sizeof in}}));
    const absl::Time start = absl::Now();
    ANNULUS_RETURN_IF_ERROR(
        ExpectError(exchange.Wait(received, start + absl::Milliseconds(30)), kLate));
    ANNULUS_RETURN_IF_ERROR(
        Expect(absl::Now() - start >= absl::Milliseconds(29), "back before the deadline"));
    ANNULUS_RETURN_IF_ERROR(ExpectError(exchange.Wait(received, absl::InfinitePast()), kLate));
    group->Barrier();
    ANNULUS_RETURN_IF_ERROR(exchange.Wait(received, absl::InfiniteFuture()));
    return Expect(in == 5, "what was sent");
  });
}

TEST_CASE("an abort fails everybody, with its reason here and UNAVAILABLE there", "[exchange]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  const auto group = MakeExchangeGroup(kind, 3);
  if (group == nullptr) return;
  group->Run([&](Exchange& exchange) -> absl::Status {
    Bytes in(1000);
    ANNULUS_ASSIGN_OR_RETURN(
        const Exchange::Ticket ticket,
        exchange.Post({}, {{(exchange.rank() + 1) % 3, in.data(), in.size()}}));
    group->Barrier();
    if (exchange.rank() == 1) {
      exchange.Abort(absl::DataLossError("page 7 is bad"));
      constexpr auto kReason = absl::StatusCode::kDataLoss;
      ANNULUS_RETURN_IF_ERROR(ExpectError(exchange.Wait(ticket, Soon()), kReason));
      ANNULUS_RETURN_IF_ERROR(ExpectError(exchange.Post({}, {}).status(), kReason));
      exchange.Abort(absl::CancelledError("again"));
      return ExpectError(exchange.Post({}, {}).status(), kReason);
    }
    ANNULUS_RETURN_IF_ERROR(ExpectError(exchange.Wait(ticket, Soon()),
                                        absl::StatusCode::kUnavailable,
                                        {"rank 1 aborted", "page 7 is bad"}));
    return ExpectError(exchange.Post({}, {}).status(), absl::StatusCode::kUnavailable);
  });
}

TEST_CASE("an abort before the other side has opened reaches it", "[exchange][channels]") {
  const std::string kind = GENERATE(from_range(ExchangeKinds(/*with_channels=*/true)));
  CAPTURE(kind);
  const auto group = MakeExchangeGroup(kind, 2);
  if (group == nullptr) return;
  group->Run([&](Exchange& exchange) -> absl::Status {
    if (exchange.rank() == 0) {
      {
        ANNULUS_ASSIGN_OR_RETURN(const auto opened, group->Open(0, 6));
        opened->Abort(absl::CancelledError("no"));
      }
      absl::SleepFor(absl::Milliseconds(50));
      group->Barrier();
      return absl::OkStatus();
    }
    group->Barrier();
    ANNULUS_ASSIGN_OR_RETURN(const auto opened, group->Open(1, 6));
    char byte;
    const auto ticket = opened->Post({}, {{0, &byte, 1}});
    return ExpectError(ticket.ok() ? opened->Wait(*ticket, Soon()) : ticket.status(),
                       absl::StatusCode::kUnavailable);
  });
}

// Rank 0 sends memory that it overwrites with 0xBB once it has aborted, rank 1 receives into memory
// that it overwrites with 0xCC once it has.
absl::Status AbortInTheMiddle(Exchange& exchange, bool receiver_aborts, absl::Duration after) {
  const size_t size_bytes = size_t{16} << 20;
  const bool sends = exchange.rank() == 0;
  Bytes memory(size_bytes, sends ? 0xAA : 0);
  const auto ticket = sends ? exchange.Post({{1, memory.data(), size_bytes}}, {})
                            : exchange.Post({}, {{0, memory.data(), size_bytes}});
  if (sends != receiver_aborts) {
    absl::SleepFor(after);
    exchange.Abort(absl::CancelledError("enough"));
    const int mark = sends ? 0xBB : 0xCC;
    std::memset(memory.data(), mark, size_bytes);
    absl::SleepFor(absl::Milliseconds(5));
    return Expect(memory == Bytes(size_bytes, static_cast<uint8_t>(mark)),
                  "memory was written after Abort");
  }
  const bool whole = ticket.ok() && exchange.Wait(*ticket, Soon()).ok();
  if (sends) return absl::OkStatus();
  ANNULUS_RETURN_IF_ERROR(
      Expect(!whole || memory == Bytes(size_bytes, 0xAA), "other bytes than were sent"));
  return Expect(std::memchr(memory.data(), 0xBB, size_bytes) == nullptr,
                "memory was read after Abort");
}

TEST_CASE("after Abort no memory is touched", "[exchange]") {
  const std::string kind = Kind();
  const uint64_t seed = 99;
  CAPTURE(kind, seed);
  Rng rng(seed);
  for (int round = 0; round < 8; ++round) {
    CAPTURE(round);
    const absl::Duration after = absl::Microseconds(rng.Below(4000));
    const auto group = MakeExchangeGroup(kind, 2);
    if (group == nullptr) return;
    group->Run([&](Exchange& exchange) {
      return AbortInTheMiddle(exchange, /*receiver_aborts=*/round % 2 == 0, after);
    });
  }
}

}  // namespace
}  // namespace annulus
