// What tenants may have of a cluster, event by event.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "annulus/retry_hint.h"
#include "tests/catch.h"
#include "tests/runtime/core_driver.h"

namespace annulus {
namespace {

using test::All;
using test::FinishOf;
using test::SmallSpec;

// Blocks of a layer of the small spec are cut over two workers; a block of all KV heads:
constexpr int64_t kBlock = 64 * 2 * (16 + 16) * 2;

struct Quota : test::Driver {
  Quota() : Driver(2) {}

  action::Finish Ask(const Caller& caller, Request request) {
    const CallId call = ++last_call;
    Actions actions =
        Handle(event::Begin{call, std::move(request), absl::InfiniteFuture(), caller});
    for (const action::Send& send : All<action::Send>(actions)) {
      if (const auto* open = std::get_if<wire::Open>(&send.body)) epoch = open->epoch;
    }
    for (const PeerId peer : {11, 12}) {
      if (All<action::Finish>(actions).empty()) actions = Answer(peer, call);
    }
    REQUIRE(All<action::Finish>(actions).size() == 1);
    return All<action::Finish>(actions)[0];
  }
  absl::StatusOr<ContextId> Make(const Caller& caller) {
    const action::Finish finish = Ask(caller, request::Create{SmallSpec()});
    if (!finish.status.ok()) return finish.status;
    return finish.context;
  }
  // Begins an append, which a quota may refuse.
  CallId Append(const Caller& caller, ContextId id, int64_t start, int64_t tokens,
                absl::Status* refused) {
    const CallId call = ++last_call;
    const Actions actions = Handle(
        event::Begin{call, test::AppendOf(id, 0, start, tokens), absl::InfiniteFuture(), caller});
    *refused = All<action::Finish>(actions).empty() ? absl::OkStatus() : FinishOf(actions, call);
    return call;
  }
  // The workers store it, and hold so much of its owner each.
  void Store(CallId call, int64_t owner_bytes) {
    Handle(event::Prepared{call, {0, 1}});
    for (const PeerId peer : {11, 12}) {
      wire::WorkDone done{call, {{epoch, absl::OkStatus(), owner_bytes}}};
      done.items[0].owner_kv_bytes = owner_bytes;
      Handle(event::Heard{peer, done});
    }
  }
  // The workers say that they hold so much of the owner each.
  void Hold(int64_t owner_bytes) {
    for (const PeerId peer : {11, 12}) {
      Handle(event::Heard{peer, wire::Heartbeat{.owners = {{"lab", owner_bytes}}}});
    }
  }
  TenantStatus StatusOf(const std::string& tenant) {
    for (const TenantStatus& status : core.Status(now).tenants) {
      if (status.tenant == tenant) return status;
    }
    return {};
  }
};

Caller Bound(TenantQuotas quotas, std::string tenant = "lab") {
  Caller caller{"ann", std::move(tenant), Role::kTenant};
  caller.quotas = quotas;
  return caller;
}

TEST_CASE("a tenant makes no more contexts than its quota, forks among them") {
  Quota d;
  Caller ann = Bound({.contexts_max = 2});
  const ContextId first = d.Make(ann).value();
  const ContextId second = d.Ask(ann, request::Fork{first, {}}).context;
  REQUIRE(second != 0);
  CHECK(d.Make(ann).status() ==
        absl::ResourceExhaustedError(
            "contexts_max: 2 of tenant \"lab\" and 1 more; expected at most 2, its quota"));
  CHECK(absl::IsResourceExhausted(d.Ask(ann, request::Fork{first, {}}).status));
  // Who may not know the parent is not told of a quota.
  CHECK(absl::IsNotFound(
      d.Ask(Bound({.contexts_max = 0}, "other"), request::Fork{first, {}}).status));
  CHECK(d.Make(Bound({.contexts_max = 1}, "other")).ok());
  CHECK(d.Make({"root", "lab", Role::kAdmin}).ok());  // admins are held to none
  CHECK(d.StatusOf("lab").contexts == 3);
  ann.quotas.contexts_max = 4;  // the file has changed
  CHECK(d.Make(ann).ok());
  for (const ContextId id : {first, second}) CHECK(d.Ask(ann, request::Release{id}).status.ok());
  CHECK(d.StatusOf("lab").contexts == 2);
  CHECK(d.Make(ann).ok());
}

TEST_CASE("a tenant's creates in a second are bounded, and it is told when to come again") {
  Quota d;
  const Caller ann = Bound({.creates_per_s_max = 4});
  for (int i = 0; i < 4; ++i) CHECK(d.Make(ann).ok());
  const absl::Status refused = d.Make(ann).status();
  CHECK(absl::IsResourceExhausted(refused));
  CHECK(refused.message().find("creates_per_s_max") != std::string::npos);
  CHECK(RetryAfter(refused) == absl::Milliseconds(250));
  d.now += absl::Milliseconds(250);
  const ContextId id = d.Make(ann).value();
  CHECK(!d.Make(ann).ok());
  // Contexts that come and go leave the count as it is.
  CHECK(d.Ask(ann, request::Release{id}).status.ok());
  CHECK(!d.Make(ann).ok());
  d.now += absl::Milliseconds(400);
  for (const PeerId peer : {11, 12}) d.Beat(peer);
  CHECK(d.Make(ann).ok());
  CHECK(!RetryAfter(d.Make(Bound({.creates_per_s_max = 0}, "none")).status()).has_value());
}

TEST_CASE("a tenant's KV counts what workers hold of it and what appends in flight may add") {
  Quota d;
  const Caller ann = Bound({.kv_bytes_max = 4 * kBlock});
  const ContextId id = d.Make(ann).value();
  absl::Status refused;
  const CallId first = d.Append(ann, id, 0, 100, &refused);  // two blocks
  REQUIRE(refused.ok());
  const ContextId other = d.Make(ann).value();
  d.Append(ann, other, 0, 200, &refused);  // four
  CHECK(absl::IsResourceExhausted(refused));
  CHECK(refused.message() == absl::StrCat("kv_bytes_max: ", 2 * kBlock, " of tenant \"lab\" and ",
                                          4 * kBlock, " more; expected at most ", 4 * kBlock,
                                          ", its quota"));
  CHECK(RetryAfter(refused).has_value());  // what is in flight may come to nothing
  d.Store(first, kBlock);
  CHECK(d.StatusOf("lab").kv_bytes == 2 * kBlock);
  const CallId second = d.Append(ann, id, 100, 28, &refused);  // within the blocks that are there
  CHECK(refused.ok());
  d.Store(second, kBlock);
  const CallId third = d.Append(ann, id, 128, 128, &refused);
  CHECK(refused.ok());
  d.Store(third, 2 * kBlock);
  d.Append(ann, id, 256, 1, &refused);
  CHECK(absl::IsResourceExhausted(refused));
  CHECK(!RetryAfter(refused).has_value());  // nothing will become of waiting
  // An admin's append, and that of another tenant, are not held to it.
  d.Append({"root", "", Role::kAdmin}, id, 256, 1, &refused);
  CHECK(refused.ok());
}

TEST_CASE("a tenant's KV counts the copy of a block that forks share, for as long as they do") {
  Quota d;
  const Caller ann = Bound({.kv_bytes_max = 2 * kBlock});
  const auto fork = [&](ContextId id, std::optional<int64_t> tokens = {}) {
    const ContextId made = d.Ask(ann, request::Fork{id, tokens}).context;
    REQUIRE(made != 0);
    return made;
  };
  const ContextId id = d.Make(ann).value();
  absl::Status refused;
  d.Store(d.Append(ann, id, 0, 10, &refused), kBlock / 2);
  const ContextId first = fork(id);
  const ContextId second = fork(id, 5);
  d.Hold(kBlock / 2);
  const CallId copies = d.Append(ann, first, 10, 1, &refused);
  REQUIRE(refused.ok());
  d.Append(ann, second, 5, 1, &refused);
  CHECK(absl::IsResourceExhausted(refused));
  CHECK(RetryAfter(refused).has_value());
  d.Store(copies, kBlock);
  d.Append(ann, second, 5, 1, &refused);
  CHECK(refused.message() == absl::StrCat("kv_bytes_max: ", 2 * kBlock, " of tenant \"lab\" and ",
                                          kBlock, " more; expected at most ", 2 * kBlock,
                                          ", its quota"));
  d.Store(d.Append(ann, first, 11, 1, &refused), kBlock);  // to the copy, which is its own
  CHECK(refused.ok());

  // An append that was taken back may have copied nothing.
  REQUIRE(d.Ask(ann, request::Release{first}).status.ok());
  d.Hold(kBlock / 2);
  const CallId taken_back = d.Append(ann, second, 5, 1, &refused);
  REQUIRE(refused.ok());
  d.Handle(event::Prepared{taken_back, {0, 1}});
  d.Handle(event::GiveUp{taken_back, absl::CancelledError("enough")});
  d.Hold(kBlock);
  d.Append(ann, second, 5, 1, &refused);
  CHECK(absl::IsResourceExhausted(refused));
  d.Hold(kBlock / 2);
  d.Store(d.Append(ann, second, 5, 1, &refused), kBlock);
  REQUIRE(refused.ok());
  // Nobody else has the parent's block now.
  d.Store(d.Append(ann, id, 10, 1, &refused), kBlock);
  CHECK(refused.ok());
}

TEST_CASE("a block that a fork shares whole is copied once it is cut, and then goes on") {
  Quota d;
  const Caller ann = Bound({.kv_bytes_max = kBlock});
  const ContextId id = d.Make(ann).value();
  absl::Status refused;
  d.Store(d.Append(ann, id, 0, 64, &refused), kBlock / 2);
  const ContextId fork = d.Ask(ann, request::Fork{id, {}}).context;
  REQUIRE(d.Ask(ann, request::Truncate{fork, 60}).status.ok());
  d.Hold(kBlock / 2);
  d.Append(ann, fork, 60, 1, &refused);
  CHECK(absl::IsResourceExhausted(refused));
  // A context that was never forked writes to its blocks.
  REQUIRE(d.Ask(ann, request::Release{fork}).status.ok());
  const ContextId other = d.Make(ann).value();
  d.Hold(0);
  d.Store(d.Append(ann, other, 0, 64, &refused), kBlock / 2);
  REQUIRE(d.Ask(ann, request::Truncate{other, 60}).status.ok());
  d.Hold(kBlock / 2);
  d.Append(ann, other, 60, 1, &refused);
  CHECK(refused.ok());
}

TEST_CASE("a worker that is lost, and one that holds less, take from a tenant's KV") {
  Quota d;
  const Caller ann = Bound({});
  const ContextId id = d.Make(ann).value();
  absl::Status refused;
  d.Store(d.Append(ann, id, 0, 100, &refused), kBlock);
  d.Handle(event::Heard{11, wire::Heartbeat{.kv_bytes = 0, .owners = {{"lab", kBlock / 2}}}});
  CHECK(d.StatusOf("lab").kv_bytes == kBlock + kBlock / 2);
  // Of those that have nothing here a worker may say what it will.
  d.Handle(event::Heard{11, wire::Heartbeat{.kv_bytes = 0, .owners = {{"nobody", kBlock}}}});
  CHECK(d.core.Status(d.now).tenants.size() == 1);
  d.Handle(event::PeerDown{12, absl::UnavailableError("gone")});
  CHECK(d.StatusOf("lab").kv_bytes == kBlock / 2);
}

TEST_CASE("a tenant's calls and their bytes in flight are bounded") {
  Quota d;
  Caller ann = Bound({.calls_in_flight_max = 2});
  const ContextId first = d.Make(ann).value();
  const ContextId second = d.Make(ann).value();
  const ContextId third = d.Make(ann).value();
  absl::Status refused;
  const CallId call = d.Append(ann, first, 0, 1, &refused);
  d.Append(ann, second, 0, 1, &refused);
  REQUIRE(refused.ok());
  d.Append(ann, third, 0, 1, &refused);
  CHECK(refused.message() ==
        "calls_in_flight_max: 2 of tenant \"lab\" and 1 more; expected at most 2, its quota");
  CHECK(RetryAfter(refused).has_value());
  CHECK(d.Ask(ann, request::KeepAlive{{first}}).status.ok());  // small, and it ends at once
  CHECK(d.StatusOf("lab").in_flight == 2);
  d.Store(call, 0);
  d.Append(ann, third, 0, 1, &refused);
  CHECK(refused.ok());

  ann.quotas = {.bytes_in_flight_max = 3 * kBlock / 64};  // of two of which there is one token each
  d.Append(ann, first, 1, 2, &refused);
  CHECK(refused.message().find("bytes_in_flight_max") != std::string::npos);
  CHECK(RetryAfter(refused).has_value());
  d.Append(ann, first, 1, 4, &refused);
  CHECK(!RetryAfter(refused).has_value());  // it never has room
  d.Append(ann, first, 1, 1, &refused);
  CHECK(refused.ok());
  CHECK(d.StatusOf("lab").in_flight_bytes == 3 * kBlock / 64);
}

}  // namespace
}  // namespace annulus
