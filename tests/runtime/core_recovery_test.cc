// What a coordinator makes of workers that had another one before, event by event.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/catch.h"
#include "tests/runtime/core_driver.h"

namespace annulus {
namespace {

using test::All;
using test::SentTo;
using test::SmallSpec;
using test::TokensOf;

constexpr uint64_t kBefore = 1000;
constexpr uint64_t kNow = 2000;
constexpr ContextId kContext = 1001;

// A coordinator that has just started. Workers of the one before are peers 11, 12, …
struct Restarted {
  Restarted() { core.Handle(now, event::Tick{}); }

  Actions Handle(const Event& event) { return core.Handle(now, event); }
  Actions Join(PeerId peer, uint64_t contexts) {
    wire::Hello hello;
    hello.address = absl::StrCat("addr", peer);
    hello.coordinator = kBefore;
    hello.contexts = contexts;
    return Handle(event::Heard{peer, hello});
  }
  Actions Tell(PeerId peer, const wire::Inventory& inventory) {
    return Handle(event::Heard{peer, inventory});
  }
  absl::Status Describe() const { return core.Describe(kContext).status(); }

  CoordinatorCore core{CoordinatorLimits{}, absl::Seconds(1), {kNow, absl::Seconds(10)}};
  absl::Time now = absl::UnixEpoch();
};

LayerState Stored(int64_t tokens, uint64_t append_number, TokenRange last, uint64_t sequence) {
  return {tokens, HorizonOf(last.begin), {append_number, {5, sequence}}, last};
}

// Rank `rank` of two, at peers 11 and 12, with both layers alike.
wire::Inventory Holds(int rank, const LayerState& layer) {
  wire::Inventory inventory;
  inventory.epoch = 7;
  inventory.storage_id = inventory.context = kContext;
  inventory.spec = SmallSpec();
  inventory.rank = rank;
  inventory.addresses = {"addr11", "addr12"};
  inventory.layers = {layer, layer};
  return inventory;
}

absl::Status Repeat(Restarted& d, int64_t start, int64_t tokens, uint64_t sequence) {
  const CallId call = 5000 + sequence;
  const request::Work append = test::AppendOf(kContext, 0, start, tokens, {5, sequence});
  const Actions actions = d.Handle(event::Begin{call, append});
  if (!All<action::Admit>(actions).empty()) return absl::CancelledError("is appended");
  return test::FinishOf(actions, call);
}

// The same of a tenant, who asks for what may be refused.
struct Returning : Restarted {
  wire::Inventory HoldsOfLab(ContextId id, int rank, std::vector<std::string> addresses) const {
    wire::Inventory inventory = Holds(rank, Stored(64, 3, {0, 64}, 9));
    inventory.storage_id = inventory.context = id;
    inventory.spec.owner = "lab";
    inventory.addresses = std::move(addresses);
    return inventory;
  }
  // OK if it has begun.
  absl::Status Ask(Request request) {
    const CallId call = ++last_call;
    const Actions actions = Handle(event::Begin{call, request, absl::InfiniteFuture(), ann});
    return All<action::Finish>(actions).empty() ? absl::OkStatus() : test::FinishOf(actions, call);
  }
  absl::Status Create() { return Ask(request::Create{SmallSpec()}); }

  Caller ann{"ann", "lab", Role::kTenant};
  CallId last_call = 7000;
};

TEST_CASE("A tenant makes no contexts before it is known how many it has") {
  Returning d;
  d.ann.quotas.contexts_max = 1;
  d.Join(11, 1);
  const absl::Status unknown = d.Create();
  CHECK(absl::IsUnavailable(unknown));
  CHECK(absl::StrContains(unknown.message(), "contexts_max"));
  d.ann.quotas.contexts_max = 2;
  d.Tell(11, d.HoldsOfLab(kContext, 0, {"addr11", "addr12"}));
  CHECK(absl::IsUnavailable(d.Create()));  // the other one may hold more of it
  d.Join(12, 2);
  d.Tell(12, d.HoldsOfLab(kContext, 1, {"addr11", "addr12"}));
  CHECK(absl::IsUnavailable(d.Create()));
  d.Tell(12, d.HoldsOfLab(kContext + 1, 0, {"addr12"}));
  CHECK(absl::IsResourceExhausted(d.Create()));
  d.ann.quotas.contexts_max = 3;
  CHECK(d.Create().ok());
}

TEST_CASE("What is still missing when the time is over holds no tenant up") {
  Returning d;
  d.ann.quotas.contexts_max = 2;
  d.Join(11, 1);
  d.Tell(11, d.HoldsOfLab(kContext, 0, {"addr11", "addr12"}));
  CHECK(absl::IsUnavailable(d.Create()));
  for (int i = 0; i < 26; ++i) {
    d.now += absl::Seconds(0.4);
    d.Handle(event::Heard{11, wire::Heartbeat{}});
  }
  d.Handle(event::Tick{});
  CHECK(d.Create().ok());
  CHECK(absl::IsResourceExhausted(d.Create()));  // the lost one counts until it is released
}

TEST_CASE("A tenant stores nothing more before it is known what it has stored") {
  Returning d;
  d.ann.quotas.kv_bytes_max = 1 << 20;
  d.Join(11, 2);
  d.Tell(11, d.HoldsOfLab(kContext, 0, {"addr11"}));
  d.Tell(11, d.HoldsOfLab(kContext + 1, 0, {"addr11", "addr12"}));
  const auto append = [&] { return d.Ask(test::AppendOf(kContext, 0, 64, 1)); };
  const absl::Status unknown = append();
  CHECK(absl::IsUnavailable(unknown));
  CHECK(absl::StrContains(unknown.message(), "kv_bytes_max"));
  d.Join(12, 1);
  d.Tell(12, d.HoldsOfLab(kContext + 1, 1, {"addr11", "addr12"}));
  CHECK(append().ok());
}

TEST_CASE("A context is unavailable until its ranks are back, then goes on at a new epoch") {
  Restarted d;
  CHECK(absl::IsUnavailable(d.Describe()));
  CHECK(absl::IsNotFound(d.core.Describe(kNow).status()));  // it has created none
  d.Join(11, 1);
  d.Join(12, 1);
  d.Tell(12, Holds(1, Stored(100, 3, {90, 100}, 9)));
  CHECK(absl::IsUnavailable(d.Describe()));
  CHECK(d.Describe().message() ==
        "context 1001 is being recovered: 1 of 2 workers are back; retry");
  CHECK(absl::IsUnavailable(d.core.List({}).status()));
  CHECK(d.core.Describe(kContext + 1).status().message() ==
        "context 1002 is not known yet: the coordinator has started anew, 2 workers are back and 0 "
        "that they know are missing; retry");
  const Actions actions = d.Tell(11, Holds(0, Stored(100, 3, {90, 100}, 9)));
  CHECK(SentTo<wire::Resume>(actions) == std::vector<PeerId>{11, 12});
  const auto resume = std::get<wire::Resume>(All<action::Send>(actions).at(0).body);
  CHECK(resume.epoch > 7);
  CHECK(resume.addresses == std::vector<std::string>{"addr11", "addr12"});
  CHECK(TokensOf(resume) == std::vector<int64_t>{100, 100});
  REQUIRE(d.Describe().ok());
  CHECK(d.core.Describe(kContext)->epoch == resume.epoch);
  CHECK(d.core.Describe(kContext)->tokens == std::vector<int64_t>{100, 100});
  CHECK(Repeat(d, 90, 10, 9).ok());  // as the first was answered
  CHECK(absl::IsInvalidArgument(Repeat(d, 90, 10, 10)));
  CHECK(absl::IsCancelled(Repeat(d, 100, 10, 11)));
}

TEST_CASE("It is told how many contexts wait for workers, and how long they do or last did") {
  Restarted d;
  CHECK(d.core.recovering() == 0);
  CHECK(d.core.recovery_time(d.now) == absl::ZeroDuration());
  d.Join(11, 1);
  d.Join(12, 1);
  d.now += absl::Seconds(0.5);
  d.Tell(12, Holds(1, Stored(100, 3, {90, 100}, 9)));
  CHECK(d.core.recovering() == 1);
  CHECK(d.core.recovery_time(d.now + absl::Seconds(3)) == absl::Seconds(3));
  d.now += absl::Seconds(0.25);
  d.Tell(11, Holds(0, Stored(100, 3, {90, 100}, 9)));
  CHECK(d.core.recovering() == 0);
  CHECK(d.core.recovery_time(d.now + absl::Seconds(3)) == absl::Seconds(0.25));
}

TEST_CASE("What only some ranks have stored is cut off, and may be appended again") {
  Restarted d;
  d.Join(11, 1);
  d.Join(12, 1);
  d.Tell(11, Holds(0, Stored(110, 4, {100, 110}, 10)));
  const Actions actions = d.Tell(12, Holds(1, Stored(100, 3, {90, 100}, 9)));
  CHECK(TokensOf(std::get<wire::Resume>(All<action::Send>(actions).at(0).body)).at(0) == 100);
  CHECK(d.core.Describe(kContext)->tokens.at(0) == 100);
  CHECK(Repeat(d, 90, 10, 9).ok());
  CHECK(absl::IsCancelled(Repeat(d, 100, 10, 10)));
}

TEST_CASE("A rank that wrote anew after a truncation does not mix with one that has not") {
  Restarted d;
  d.Join(11, 1);
  d.Join(12, 1);
  // Truncated to 50 and appended to again here, neither there: both have 100 tokens.
  d.Tell(11, Holds(0, Stored(100, 4, {50, 100}, 10)));
  d.Tell(12, Holds(1, Stored(100, 3, {0, 100}, 9)));
  REQUIRE(d.Describe().ok());
  CHECK(d.core.Describe(kContext)->tokens.at(0) == 50);
  CHECK(absl::IsAborted(Repeat(d, 0, 100, 9)));
  CHECK(absl::IsCancelled(Repeat(d, 50, 50, 10)));
}

TEST_CASE("A context whose ranks are not all back in time is lost, and says so") {
  Restarted d;
  d.Join(11, 1);
  d.Tell(11, Holds(0, Stored(100, 3, {90, 100}, 9)));
  std::vector<action::ContextLost> told;
  for (int i = 0; i < 25; ++i) {
    d.now += absl::Milliseconds(450);
    d.Handle(event::Heard{11, wire::Heartbeat{}});
    for (const auto& lost : All<action::ContextLost>(d.Handle(event::Tick{}))) {
      told.push_back(lost);
    }
  }
  REQUIRE(d.Describe().ok());
  CHECK(d.core.Describe(kContext)->state == "lost");
  REQUIRE(told.size() == 1);
  CHECK(told[0].context == kContext);
  CHECK(told[0].with == "1 of 2 workers, which did not come back");
  const absl::Status lost = Repeat(d, 100, 1, 10);
  CHECK(absl::IsDataLoss(lost));
  CHECK(lost.message() ==
        "context 1001 lost KV with 1 of 2 workers, which did not come back; release it, create it "
        "again and upload it");
  // Too late.
  d.Join(12, 1);
  CHECK(SentTo<wire::Release>(d.Tell(12, Holds(1, Stored(100, 3, {90, 100}, 9)))) ==
        std::vector<PeerId>{12});
}

TEST_CASE("A context that was lost in a restart stays so, whoever is cut off and comes back") {
  for (const bool copies : {false, true}) {
    CAPTURE(copies);
    Restarted d;
    wire::Inventory held = Holds(0, Stored(100, 3, {90, 100}, 9));
    if (copies) {  // all ranks are held by who is back, which does not say what was committed
      held.spec.replicas = 2;
      held.addresses = {"addr11"};
      held.copies.push_back({.rank = 0, .address = "addr12"});
      held.activating = true;
    }
    d.Join(11, 1);
    d.Tell(11, held);
    const auto wait = [&] {
      for (int i = 0; i < 25; ++i) {
        d.now += absl::Milliseconds(450);
        d.Handle(event::Heard{11, wire::Heartbeat{}});
        d.Handle(event::Tick{});
      }
    };
    wait();
    REQUIRE(d.core.Describe(kContext)->state == "lost");
    d.Handle(event::PeerDown{11, absl::UnavailableError("it is cut off")});
    CHECK(d.core.Describe(kContext)->state == "lost");
    wire::Hello hello;  // the same process, by a link of its own
    hello.address = "addr11";
    hello.coordinator = kNow;
    hello.contexts = 1;
    d.Handle(event::Heard{21, hello});
    CHECK(SentTo<wire::Release>(d.Tell(21, held)) == std::vector<PeerId>{21});
    CHECK(d.core.Describe(kContext)->state == "lost");
    CHECK(absl::IsDataLoss(Repeat(d, 0, 10, 10)));
  }
}

TEST_CASE("A context that was being made or released is forgotten once its workers are back") {
  Restarted d;
  d.Join(11, 1);
  d.Tell(11, Holds(0, {}));
  CHECK(absl::IsUnavailable(d.Describe()));
  CHECK(d.core.Describe(kContext + 1).status().message() ==
        "context 1002 is not known yet: the coordinator has started anew, 1 workers are back and 1 "
        "that they know are missing; retry");
  d.Join(12, 1);
  wire::Inventory other = Holds(0, {});
  other.storage_id = other.context = 1002;
  other.addresses = {"addr12"};
  const Actions actions = d.Tell(12, other);
  CHECK(SentTo<wire::Release>(actions) == std::vector<PeerId>{11});
  CHECK(SentTo<wire::Resume>(actions) == std::vector<PeerId>{12});
  CHECK(d.core.Describe(1002).ok());
}

TEST_CASE("Who holds a context is what the latest epoch says, and others are stale") {
  Restarted d;
  d.Join(11, 1);
  d.Join(12, 1);
  wire::Inventory before = Holds(0, Stored(100, 3, {90, 100}, 9));
  before.addresses = {"addr11"};
  before.copies = {{0, "addr12"}};
  before.spec.replicas = 2;
  d.Tell(11, before);
  CHECK(absl::IsUnavailable(d.Describe()));
  // It went on alone.
  wire::Inventory after = before;
  after.epoch = 8;
  after.addresses = {"addr12"};
  after.copies = {};
  after.layers = {Stored(110, 4, {100, 110}, 10), Stored(110, 4, {100, 110}, 10)};
  const Actions actions = d.Tell(12, after);
  CHECK(SentTo<wire::Release>(actions) == std::vector<PeerId>{11});
  CHECK(SentTo<wire::Resume>(actions) == std::vector<PeerId>{12});
  REQUIRE(d.Describe().ok());
  CHECK(d.core.Describe(kContext)->tokens[0] == 110);
  CHECK(d.core.Describe(kContext)->state == "degraded");
}

TEST_CASE("Half of the pair that may have gone on alone is not enough, one of two pairs is") {
  const int pairs = GENERATE(1, 2);
  Restarted d;
  d.Join(11, 1);
  d.Join(12, 1);
  d.Join(13, 1);
  wire::Inventory inventory = Holds(0, Stored(100, 3, {90, 100}, 9));
  inventory.spec.replicas = 2;
  inventory.addresses = {"addr11", "addr12"};
  inventory.copies = {{0, "addr14"}, {1, "addr13"}};
  if (pairs == 1) {
    inventory.addresses = {"addr11"};
    inventory.copies = {{0, "addr14"}};
  }
  d.Tell(11, inventory);
  inventory.rank = 1;
  if (pairs == 2) d.Tell(12, inventory);
  if (pairs == 2) d.Tell(13, inventory);
  for (int i = 0; i < 25; ++i) {
    d.now += absl::Milliseconds(450);
    for (const PeerId peer : {11, 12, 13}) d.Handle(event::Heard{peer, wire::Heartbeat{}});
    d.Handle(event::Tick{});
  }
  REQUIRE(d.Describe().ok());
  CHECK((d.core.Describe(kContext)->state == "lost") == (pairs == 1));
}

TEST_CASE("A worker that was given up may join again, one that broke the protocol may not") {
  Restarted d;
  CHECK(SentTo<wire::Welcome>(d.Join(11, 0)).size() == 1);
  CHECK(SentTo<wire::Welcome>(d.Join(12, 0)).size() == 1);
  d.Handle(event::PeerDown{11, absl::UnavailableError("gone")});
  d.Handle(event::Heard{12, wire::Welcome{}});
  wire::Hello hello;
  hello.coordinator = kNow;
  hello.address = "addr11";
  CHECK(SentTo<wire::Welcome>(d.Handle(event::Heard{13, hello})) == std::vector<PeerId>{13});
  hello.address = "addr12";
  CHECK(SentTo<wire::Fenced>(d.Handle(event::Heard{14, hello})) == std::vector<PeerId>{14});
  CHECK(d.core.Status(d.now).workers.size() == 2);
}

TEST_CASE("What workers tell is checked") {
  Restarted d;
  d.Join(11, 1);
  d.Join(12, 2);
  d.Tell(11, Holds(0, {}));
  CHECK(All<action::WorkerLost>(d.Tell(12, Holds(0, {}))).size() == 1);  // the same rank
  CHECK(absl::IsUnavailable(d.Describe()));
  CHECK(All<action::WorkerLost>(d.Tell(11, Holds(0, {}))).size() == 1);  // unannounced
}

}  // namespace
}  // namespace annulus
