// The contract of Exchange, for every implementation: what is moved, in the shapes of plans' steps.
// Compiled into every program that has implementations (tests/comm/exchange_group.h).
#include <algorithm>
#include <cstring>

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
  return absl::Now() + absl::Seconds(20);
}

Bytes RandomBytes(uint64_t seed, size_t size_bytes) {
  Rng rng(seed);
  Bytes bytes(size_bytes);
  for (size_t i = 0; i < size_bytes; i += sizeof(uint64_t)) {
    const uint64_t word = rng.Next();
    std::memcpy(bytes.data() + i, &word, std::min(sizeof word, size_bytes - i));
  }
  return bytes;
}

absl::Status ExpectBytes(const Bytes& got, const Bytes& want, absl::string_view what) {
  return Expect(got == want, absl::StrCat(what, ": other bytes than were sent"));
}

absl::Status PostAndWait(Exchange& exchange, absl::Span<const SendOp> sends,
                         absl::Span<const RecvOp> receives) {
  ANNULUS_ASSIGN_OR_RETURN(const Exchange::Ticket ticket, exchange.Post(sends, receives));
  return exchange.Wait(ticket, Soon());
}

TEST_CASE("ring shift: every block visits every rank", "[exchange]") {
  const std::string kind = Kind();
  const int world = GENERATE(1, 2, 3, 4, 5, 8);
  CAPTURE(kind, world);
  const auto group = MakeExchangeGroup(kind, world);
  if (group == nullptr) return;
  const size_t size_bytes = 300'001;
  group->Run([&](Exchange& exchange) -> absl::Status {
    const int rank = exchange.rank();
    const int next = (rank + 1) % world;
    const int previous = (rank + world - 1) % world;
    Bytes current = RandomBytes(rank, size_bytes);
    Bytes incoming(size_bytes);
    for (int step = 1; step < world; ++step) {
      ANNULUS_RETURN_IF_ERROR(PostAndWait(exchange, {{next, current.data(), size_bytes}},
                                          {{previous, incoming.data(), size_bytes}}));
      current.swap(incoming);
      const int origin = (rank - step + world) % world;
      ANNULUS_RETURN_IF_ERROR(ExpectBytes(current, RandomBytes(origin, size_bytes), "ring"));
    }
    const uint64_t moved = (world - 1) * uint64_t{size_bytes};
    ANNULUS_RETURN_IF_ERROR(Expect(exchange.counters().bytes_sent == moved, "bytes_sent"));
    return Expect(exchange.counters().bytes_received == moved, "bytes_received");
  });
}

TEST_CASE("all-to-all in one group, itself and nothing at all included", "[exchange]") {
  const std::string kind = Kind();
  const int world = GENERATE(1, 2, 3, 4, 5, 8);
  CAPTURE(kind, world);
  const auto group = MakeExchangeGroup(kind, world);
  if (group == nullptr) return;
  const auto size = [&](int source, int dest) {
    return (source * 7919 + dest * 104'729) % 5 == 0 ? size_t{0} : 1000u * (source + 1) + dest;
  };
  group->Run([&](Exchange& exchange) -> absl::Status {
    const int rank = exchange.rank();
    std::vector<Bytes> out(world);
    std::vector<Bytes> in(world);
    std::vector<SendOp> sends;
    std::vector<RecvOp> receives;
    uint64_t moved = 0;
    for (int peer = 0; peer < world; ++peer) {
      out[peer] = RandomBytes(rank * 100 + peer, size(rank, peer));
      in[peer].resize(size(peer, rank));
      sends.push_back({peer, out[peer].data(), out[peer].size()});
      receives.push_back({peer, in[peer].data(), in[peer].size()});
      if (peer != rank) moved += out[peer].size();
    }
    ANNULUS_RETURN_IF_ERROR(PostAndWait(exchange, sends, receives));
    for (int peer = 0; peer < world; ++peer) {
      const Bytes want = RandomBytes(peer * 100 + rank, size(peer, rank));
      ANNULUS_RETURN_IF_ERROR(ExpectBytes(in[peer], want, absl::StrCat("from ", peer)));
    }
    return Expect(exchange.counters().bytes_sent == moved, "bytes_sent");
  });
}

TEST_CASE("group-cast: one buffer goes to those who need it, at the same time", "[exchange]") {
  const std::string kind = Kind();
  const int world = GENERATE(2, 3, 4, 5, 8);
  CAPTURE(kind, world);
  const auto group = MakeExchangeGroup(kind, world);
  if (group == nullptr) return;
  const auto needs = [](int dest, int source) {
    return dest != source && (dest + source) % 3 != 0;
  };
  group->Run([&](Exchange& exchange) -> absl::Status {
    const int rank = exchange.rank();
    const Bytes own = RandomBytes(rank, 70'000);
    std::vector<Bytes> in(world, Bytes(70'000));
    std::vector<SendOp> sends;
    std::vector<RecvOp> receives;
    for (int peer = 0; peer < world; ++peer) {
      if (needs(peer, rank)) sends.push_back({peer, own.data(), own.size()});
      if (needs(rank, peer)) receives.push_back({peer, in[peer].data(), in[peer].size()});
    }
    ANNULUS_RETURN_IF_ERROR(PostAndWait(exchange, sends, receives));
    for (int peer = 0; peer < world; ++peer) {
      const Bytes want = needs(rank, peer) ? RandomBytes(peer, 70'000) : Bytes(70'000);
      ANNULUS_RETURN_IF_ERROR(ExpectBytes(in[peer], want, "group-cast"));
    }
    return absl::OkStatus();
  });
}

TEST_CASE("tree merge: sums reach rank 0 over a binary tree", "[exchange]") {
  const std::string kind = Kind();
  const int world = GENERATE(1, 2, 3, 4, 5, 8);
  CAPTURE(kind, world);
  const auto group = MakeExchangeGroup(kind, world);
  if (group == nullptr) return;
  group->Run([&](Exchange& exchange) -> absl::Status {
    const int rank = exchange.rank();
    uint64_t sum = rank + 1;
    for (int stride = 1; stride < world; stride *= 2) {
      if (rank % (2 * stride) == stride) {
        return PostAndWait(exchange, {{rank - stride, &sum, sizeof sum}}, {});
      }
      if (rank + stride >= world) continue;
      uint64_t other = 0;
      ANNULUS_RETURN_IF_ERROR(PostAndWait(exchange, {}, {{rank + stride, &other, sizeof other}}));
      sum += other;
    }
    return Expect(sum == static_cast<uint64_t>(world * (world + 1) / 2), "the sum at rank 0");
  });
}

TEST_CASE("the k-th send pairs with the k-th receive, posted and awaited in any order",
          "[exchange]") {
  const std::string kind = Kind();
  const uint64_t seed = 4242;
  CAPTURE(kind, seed);
  const int world = 3;
  const int count = 24;
  const auto group = MakeExchangeGroup(kind, world);
  if (group == nullptr) return;
  const auto size = [](int k) { return static_cast<size_t>(k * k * 1500); };
  group->Run([&](Exchange& exchange) -> absl::Status {
    if (exchange.capabilities().groups_in_order) return absl::OkStatus();  // not of those
    Rng rng(seed + exchange.rank());
    const int next = (exchange.rank() + 1) % world;
    const int previous = (exchange.rank() + 2) % world;
    std::vector<Bytes> out(count);
    std::vector<Bytes> in(count);
    std::vector<Exchange::Ticket> tickets;
    int sent = 0;
    int received = 0;
    // The order of posts differs between the ranks; only the order within a pair is kept.
    while (sent < count || received < count) {
      std::vector<SendOp> sends;
      std::vector<RecvOp> receives;
      for (int n = rng.Below(3); n > 0 && sent < count; --n, ++sent) {
        out[sent] = RandomBytes(exchange.rank() * 1000 + sent, size(sent));
        sends.push_back({next, out[sent].data(), out[sent].size()});
      }
      for (int n = rng.Below(3); n > 0 && received < count; --n, ++received) {
        in[received].resize(size(received));
        receives.push_back({previous, in[received].data(), in[received].size()});
      }
      ANNULUS_ASSIGN_OR_RETURN(const Exchange::Ticket ticket, exchange.Post(sends, receives));
      tickets.push_back(ticket);
    }
    for (size_t i = tickets.size(); i > 1; --i) std::swap(tickets[i - 1], tickets[rng.Below(i)]);
    for (const Exchange::Ticket ticket : tickets) {
      ANNULUS_RETURN_IF_ERROR(exchange.Wait(ticket, Soon()));
    }
    for (int k = 0; k < count; ++k) {
      const Bytes want = RandomBytes(previous * 1000 + k, size(k));
      ANNULUS_RETURN_IF_ERROR(ExpectBytes(in[k], want, absl::StrCat("operation ", k)));
    }
    return Expect(absl::IsInvalidArgument(exchange.Wait(tickets[0], Soon())),
                  "a ticket was waited for twice");
  });
}

TEST_CASE("32 MiB both ways at once", "[exchange]") {
  const std::string kind = Kind();
  CAPTURE(kind);
  const auto group = MakeExchangeGroup(kind, 2);
  if (group == nullptr) return;
  const size_t size_bytes = (size_t{32} << 20) + 13;
  const Bytes data[2] = {RandomBytes(1, size_bytes), RandomBytes(2, size_bytes)};
  group->Run([&](Exchange& exchange) -> absl::Status {
    const int other = 1 - exchange.rank();
    Bytes in(size_bytes);
    ANNULUS_RETURN_IF_ERROR(PostAndWait(exchange, {{other, data[1 - other].data(), size_bytes}},
                                        {{other, in.data(), size_bytes}}));
    return ExpectBytes(in, data[other], "32 MiB");
  });
}

TEST_CASE("operations that come before the other side has opened wait for it",
          "[exchange][channels]") {
  const std::string kind = GENERATE(from_range(ExchangeKinds(/*with_channels=*/true)));
  const bool early_receives = GENERATE(false, true);
  CAPTURE(kind, early_receives);
  const auto group = MakeExchangeGroup(kind, 2);
  if (group == nullptr) return;
  const Bytes out = RandomBytes(1, 1'000'000);
  group->Run([&](Exchange& exchange) -> absl::Status {
    const bool early = exchange.rank() == 0;
    const int other = 1 - exchange.rank();
    Bytes in(out.size());
    std::vector<SendOp> sends;
    std::vector<RecvOp> receives;
    if (early == early_receives) {
      receives.push_back({other, in.data(), in.size()});
    } else {
      sends.push_back({other, out.data(), out.size()});
    }
    if (!early) group->Barrier();
    ANNULUS_ASSIGN_OR_RETURN(const auto opened, group->Open(exchange.rank(), 5));
    ANNULUS_ASSIGN_OR_RETURN(const Exchange::Ticket ticket, opened->Post(sends, receives));
    if (early) {
      const absl::Status status = opened->Wait(ticket, absl::Now() + absl::Milliseconds(20));
      ANNULUS_RETURN_IF_ERROR(Expect(absl::IsDeadlineExceeded(status), "done though alone"));
      group->Barrier();
    }
    ANNULUS_RETURN_IF_ERROR(opened->Wait(ticket, Soon()));
    return receives.empty() ? absl::OkStatus() : ExpectBytes(in, out, "early");
  });
}

TEST_CASE("exchanges among the same ranks do not see each other", "[exchange][channels]") {
  const std::string kind = GENERATE(from_range(ExchangeKinds(/*with_channels=*/true)));
  CAPTURE(kind);
  const auto group = MakeExchangeGroup(kind, 2);
  if (group == nullptr) return;
  group->Run([&](Exchange& first) -> absl::Status {
    ANNULUS_ASSIGN_OR_RETURN(const auto second, group->Open(first.rank(), 1001));
    ANNULUS_RETURN_IF_ERROR(
        Expect(!group->Open(first.rank(), 1001).ok(), "a channel was opened twice"));
    if (first.rank() == 0) {
      const int out[2] = {10, 20};
      ANNULUS_RETURN_IF_ERROR(PostAndWait(first, {{1, &out[0], sizeof(int)}}, {}));
      return PostAndWait(*second, {{1, &out[1], sizeof(int)}}, {});
    }
    // The second receives before the first, and is sent to after it.
    int in[2] = {0, 0};
    ANNULUS_ASSIGN_OR_RETURN(const Exchange::Ticket of_second,
                             second->Post({}, {{0, &in[1], sizeof(int)}}));
    ANNULUS_RETURN_IF_ERROR(PostAndWait(first, {}, {{0, &in[0], sizeof(int)}}));
    ANNULUS_RETURN_IF_ERROR(second->Wait(of_second, Soon()));
    return Expect(in[0] == 10 && in[1] == 20, "the other's bytes");
  });
}

}  // namespace
}  // namespace annulus
