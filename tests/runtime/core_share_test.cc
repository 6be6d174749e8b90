// What one peer may have of the coordinator's bounds that callers share, event by event.
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

const Caller kCat = {"cat", "cats", Role::kTenant};
const Caller kBob = {"bob", "dogs", Role::kTenant};
const Caller kRoot = {"root", "", Role::kAdmin};

// Where nobody shows a token.
Caller From(const std::string& client) {
  Caller caller;
  caller.client = client;
  return caller;
}

struct Shared : test::Driver {
  explicit Shared(const CoordinatorLimits& limits) : Driver(2, limits) {}

  CallId BeginAs(const Caller& caller, Request request, absl::Status* status) {
    const CallId call = ++last_call;
    const bool has_answers = !std::holds_alternative<request::Work>(request);
    Actions actions =
        Handle(event::Begin{call, std::move(request), absl::InfiniteFuture(), caller});
    for (const action::Send& send : All<action::Send>(actions)) {
      if (const auto* open = std::get_if<wire::Open>(&send.body)) epoch = open->epoch;
    }
    for (const PeerId peer : {11, 12}) {
      if (has_answers && All<action::Finish>(actions).empty()) actions = Answer(peer, call);
    }
    const std::vector<action::Finish> ends = All<action::Finish>(actions);
    *status = ends.empty() ? absl::OkStatus() : FinishOf(actions, call);
    if (has_answers && status->ok()) made = ends.at(0).context;
    return call;
  }
  absl::Status Ask(const Caller& caller, Request request) {
    absl::Status status;
    BeginAs(caller, std::move(request), &status);
    return status;
  }
  ContextId Make(const Caller& caller) {
    CHECK(Ask(caller, request::Create{SmallSpec()}) == absl::OkStatus());
    return made;
  }

  ContextId made = 0;
};

TEST_CASE("one owner has at most half of all contexts, however they are made") {
  Shared d({.contexts_max = 6});
  const ContextId first = d.Make(kCat);
  d.Make(kCat);
  CHECK(d.Ask(kCat, request::Fork{first, {}}).ok());
  const absl::Status refused = absl::ResourceExhaustedError(
      "contexts_max: 6; its owner has 3, and at most half is one's, this context needs 1 more; "
      "release contexts");
  CHECK(d.Ask(kCat, request::Create{SmallSpec()}) == refused);
  CHECK(d.Ask(kCat, request::Fork{first, {}}) == refused);
  CHECK(d.Ask(kRoot, request::Fork{first, {}}) == refused);  // it would be its parent's owner's
  d.Make(kBob);
  d.Make(kRoot);
  d.Make(kRoot);
  CHECK(d.Ask(kRoot, request::Create{SmallSpec()}).message() ==
        "contexts_max: 6; 6 in use, this context needs 1 more; release contexts");
  CHECK(d.Ask(kCat, request::Release{first}).ok());
  d.Make(kCat);
}

TEST_CASE("one owner has at most half of all layers") {
  Shared d({.layers_max = 8});
  const ContextId first = d.Make(kCat);  // of two layers
  d.Make(kCat);
  CHECK(d.Ask(kCat, request::Create{SmallSpec()}).message() ==
        "layers_max: 8; its owner has 4, and at most half is one's, this context needs 2 more; "
        "release contexts");
  d.Make(kBob);
  d.Make(kBob);
  CHECK(d.Ask(kCat, request::Release{first}).ok());
  d.Make(kCat);
}

TEST_CASE("one tenant has at most half of the calls at once, uploads that never come among them") {
  Shared d({.in_flight_max = 4});
  const ContextId of_cat = d.Make(kCat);
  const ContextId of_bob = d.Make(kBob);
  absl::Status status;
  std::vector<CallId> held;
  for (const int layer : {0, 1}) {
    held.push_back(d.BeginAs(kCat, test::AppendOf(of_cat, layer, 0, 1), &status));
    REQUIRE(status.ok());
  }
  const absl::Status refused = d.Ask(kCat, request::Fork{of_cat, {}});
  CHECK(refused.message() ==
        "in_flight_max: 4; this caller has 2, and at most half is one's, this call needs 1 more; "
        "try again later");
  CHECK(RetryAfter(refused) == absl::Milliseconds(20));
  CHECK(d.Ask(kBob, request::Fork{of_bob, {}}).ok());
  for (const int layer : {0, 1}) {
    d.BeginAs(kBob, test::AppendOf(of_bob, layer, 0, 1), &status);
    CHECK(status.ok());
  }
  CHECK(d.Ask(kRoot, request::Create{SmallSpec()}).message() ==
        "in_flight_max: 4; 4 in use, this call needs 1 more; try again later");
  d.Handle(event::GiveUp{held[0], absl::CancelledError("enough")});
  CHECK(d.Ask(kCat, request::Fork{of_cat, {}}).ok());
}

TEST_CASE("callers without a tenant share calls by address, and the process itself has them all") {
  Shared d({.in_flight_max = 4});
  const ContextId id = d.Make(Caller());
  const ContextId other = d.Make(Caller());
  absl::Status status;
  d.BeginAs(From("ipv4:192.0.2.1:1000"), test::AppendOf(id, 0, 0, 1), &status);
  d.BeginAs(From("ipv4:192.0.2.1:1001"), test::AppendOf(id, 1, 0, 1), &status);
  REQUIRE(status.ok());
  CHECK(d.Ask(From("ipv4:192.0.2.1:1002"), request::Create{SmallSpec()}).message() ==
        "in_flight_max: 4; this caller has 2, and at most half is one's, this call needs 1 more; "
        "try again later");
  CHECK(d.Ask(From("ipv4:192.0.2.2:1000"), request::Create{SmallSpec()}).ok());
  for (const int layer : {0, 1}) {
    d.BeginAs(Caller(), test::AppendOf(other, layer, 0, 1), &status);
    CHECK(status.ok());
  }
}

TEST_CASE("one tenant has at most half of the bytes in flight, answers and candidates included") {
  // An appended token takes 128 bytes.
  Shared d({.in_flight_bytes_max = 40'000});
  const ContextId of_cat = d.Make(kCat);
  const ContextId of_bob = d.Make(kBob);
  absl::Status status;
  const CallId first = d.BeginAs(kCat, test::AppendOf(of_cat, 0, 0, 100), &status);
  REQUIRE(status.ok());
  d.BeginAs(kCat, test::AppendOf(of_cat, 1, 0, 100), &status);
  CHECK(status.message() ==
        "in_flight_bytes_max: 40000; this caller has 12800, and at most half is one's, this call "
        "needs 12800 more; try again later");
  CHECK(RetryAfter(status).has_value());
  // What it takes once it is planned is no way past it.
  const Actions actions =
      d.Handle(event::Prepared{.call = first, .shares = {0, 1}, .bytes = 10'000});
  CHECK(FinishOf(actions, first).message() ==
        "in_flight_bytes_max: 40000; this caller has 12800, and at most half is one's, this call "
        "needs 10000 more; try again later");
  d.BeginAs(kCat, test::AppendOf(of_cat, 0, 0, 150), &status);
  REQUIRE(status.ok());
  d.BeginAs(kBob, test::AppendOf(of_bob, 0, 0, 150), &status);
  CHECK(status.ok());
  CHECK(d.core.Status(d.now, kRoot).in_flight_bytes == 2 * 150 * 128);
}

TEST_CASE("the bytes of direct uploads are a tenant's in flight, but not this process's") {
  Shared d({.in_flight_bytes_max = 20'000});
  for (const PeerId peer : {11, 12}) d.Handle(event::PeerDown{peer, absl::UnavailableError("")});
  for (const PeerId peer : {21, 22}) {
    wire::Hello hello;
    hello.name = absl::StrCat("v", peer);
    hello.address = absl::StrCat("addr", peer);
    hello.data_address = "127.0.0.1:9";
    d.Handle(event::Heard{peer, hello});
  }
  Caller cat = kCat;
  cat.quotas.bytes_in_flight_max = 30'000;
  Actions actions;
  const CallId created = ++d.last_call;
  actions =
      d.Handle(event::Begin{created, request::Create{SmallSpec()}, absl::InfiniteFuture(), cat});
  d.epoch = std::get<wire::Open>(All<action::Send>(actions).at(0).body).epoch;
  for (const PeerId peer : {21, 22}) actions = d.Answer(peer, created);
  const ContextId id = All<action::Finish>(actions).at(0).context;
  absl::Status status;
  request::Work upload = test::AppendOf(id, 0, 0, 200);
  upload.direct = true;
  const CallId held = d.BeginAs(cat, upload, &status);
  CHECK(status.ok());  // 25,600 bytes
  CHECK(d.core.Status(d.now, cat).in_flight_bytes == 25'600);
  CHECK(d.core.Status(d.now, cat).tenants.at(0).in_flight_bytes == 25'600);
  upload.items[0].layer = 1;
  d.BeginAs(cat, upload, &status);
  CHECK(status.message() ==
        "bytes_in_flight_max: 25600 of tenant \"cats\" and 25600 more; expected at most 30000, its "
        "quota");
  d.Handle(event::GiveUp{held, absl::CancelledError("enough")});
  CHECK(d.core.Status(d.now, cat).in_flight_bytes == 0);
  d.BeginAs(cat, upload, &status);
  CHECK(status.ok());
}

}  // namespace
}  // namespace annulus
