// Contexts that end by themselves, event by event.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/catch.h"
#include "tests/runtime/core_driver.h"

namespace annulus {
namespace {

using test::All;
using test::FinishOf;
using test::SentTo;
using test::SmallSpec;

// Two workers, 11 and 12, with a KV limit each; contexts with leases of 10 s.
struct Leases : test::Driver {
  explicit Leases(CoordinatorLimits limits = {}) : Driver(0, limits) {
    for (const PeerId peer : {11, 12}) {
      wire::Hello hello;
      hello.address = absl::StrCat("addr", peer);
      hello.kv_bytes_limit = 100'000;
      Handle(event::Heard{peer, hello});
    }
  }

  ContextId Make(double lease, bool evictable = false) {
    request::Create create{SmallSpec()};
    create.spec.lease = lease;
    create.spec.evictable = evictable;
    Actions actions;
    const CallId call = Begin(create, &actions);
    epoch = std::get<wire::Open>(All<action::Send>(actions).at(0).body).epoch;
    Answer(11, call);
    actions = Answer(12, call);
    REQUIRE(FinishOf(actions, call).ok());
    return All<action::Finish>(actions).at(0).context;
  }
  // Time goes on as usual; what was told to people meanwhile.
  std::vector<action::ContextEnded> Pass(absl::Duration duration) {
    std::vector<action::ContextEnded> ended;
    for (const absl::Time end = now + duration; now < end;) {
      now += absl::Milliseconds(50);
      for (const PeerId peer : {11, 12}) {
        Handle(event::Heard{peer, wire::Heartbeat{.kv_bytes = kv_bytes}});
      }
      if (now < core.NextTimer()) continue;
      released.clear();
      const Actions actions = Handle(event::Tick{});
      for (const auto& end : All<action::ContextEnded>(actions)) ended.push_back(end);
      for (const PeerId peer : SentTo<wire::Release>(actions)) released.push_back(peer);
    }
    return ended;
  }
  absl::Status KeepAlive(ContextId id) {
    Actions actions;
    Begin(request::KeepAlive{{id}}, &actions);
    return All<action::Finish>(actions).at(0).items.at(0).status;
  }
  // An append that both workers store, or the first has no room for.
  absl::Status Append(ContextId id, int64_t tokens, bool full = false) {
    Actions actions;
    const CallId call = BeginAppend(id, core.Describe(id)->tokens[0], tokens, &actions);
    Handle(event::Prepared{call, {0, 1}});
    wire::WorkDone done{call, {{epoch, absl::OkStatus(), 40'000}}};
    if (full) {
      done.items[0].status = absl::ResourceExhaustedError("kv_bytes_limit: 100000; …");
    }
    last = Handle(event::Heard{11, done});
    if (full) return FinishOf(last, call);
    return FinishOf(Handle(event::Heard{12, done}), call);
  }

  int64_t kv_bytes = 0;
  std::vector<PeerId> released;  // by the last tick of Pass
  Actions last;
};

TEST_CASE("A context that nobody uses for its lease ends, and others do not") {
  Leases d;
  const ContextId short_lived = d.Make(10);
  const ContextId without = d.Make(0);
  CHECK(d.Pass(absl::Seconds(9.9)).empty());
  CHECK(d.core.Describe(short_lived)->idle_s == Approx(9.9).margin(0.06));
  const auto ended = d.Pass(absl::Milliseconds(300));
  REQUIRE(ended.size() == 1);
  CHECK(ended[0].context == short_lived);
  CHECK(d.Pass(absl::Seconds(1000)).empty());
  CHECK(d.core.Describe(without).ok());
  const absl::Status gone = d.core.Describe(short_lived).status();
  CHECK(absl::IsNotFound(gone));
  CHECK(gone.message() ==
        absl::StrCat("context ", short_lived,
                     " was released: its lease of 10 s passed without a call on it; create it "
                     "again"));
  Actions actions;
  const CallId call = d.BeginAttend(short_lived, 1, 1, &actions);
  CHECK(FinishOf(actions, call) == gone);
  CHECK(d.KeepAlive(short_lived) == gone);
  CHECK(d.core.Status(d.now).contexts_expired == 1);
}

TEST_CASE("A context whose tensors are on their way does not end before they have come") {
  Leases d;
  const ContextId id = d.Make(10);
  REQUIRE(d.Append(id, 10).ok());
  CHECK(d.Pass(absl::Seconds(9)).empty());
  d.Handle(event::Use{id, 1});
  CHECK(d.Pass(absl::Seconds(100)).empty());
  CHECK(d.core.Describe(id)->idle_s == 0);
  REQUIRE(d.Append(id, 10).ok());
  d.Handle(event::Use{id, 1});  // of two calls
  d.Handle(event::Use{id, -1});
  CHECK(d.Pass(absl::Seconds(100)).empty());
  d.Handle(event::Use{id, -1});
  CHECK(d.Pass(absl::Seconds(9.9)).empty());
  CHECK(d.Pass(absl::Milliseconds(300)).size() == 1);
  d.Handle(event::Use{id, 1});  // of what is gone: nothing
  d.Handle(event::Use{id, -1});
}

TEST_CASE("Each call on a context renews its lease, one that fails too, and KeepAlive") {
  const int how = GENERATE(range(0, 4));
  Leases d;
  const ContextId id = d.Make(10);
  REQUIRE(d.Append(id, 10).ok());
  for (int i = 0; i < 4; ++i) {
    CHECK(d.Pass(absl::Seconds(9)).empty());
    Actions actions;
    if (how == 0) CHECK(d.KeepAlive(id).ok());
    if (how == 1)
      d.Handle(event::GiveUp{d.BeginAttend(id, 1, 10, &actions), absl::CancelledError("enough")});
    if (how == 2) d.BeginAttend(id, 1, 11, &actions);  // kv_len is too large
    if (how != 3) continue;
    const CallId call = d.Begin(request::Truncate{id, 10}, &actions);
    d.Answer(11, call);
    CHECK(FinishOf(d.Answer(12, call), call).ok());
  }
  CHECK(d.Pass(absl::Seconds(11)).size() == 1);
}

TEST_CASE("A context that a call uses does not end, however long it takes") {
  Leases d;
  const ContextId id = d.Make(1);
  REQUIRE(d.Append(id, 10).ok());
  Actions actions;
  const CallId call = d.BeginAttend(id, 1, 10, &actions);
  d.Handle(event::Prepared{call, {0, 1}});
  CHECK(d.Pass(absl::Seconds(30)).empty());
  d.Answer(11, call);
  CHECK(FinishOf(d.Answer(12, call), call).ok());
  CHECK(d.Pass(absl::Milliseconds(900)).empty());
  CHECK(d.Pass(absl::Milliseconds(300)).size() == 1);
  CHECK(d.released.size() == 2);
}

TEST_CASE("A context that is being truncated does not end") {
  Leases d;
  const ContextId id = d.Make(1);
  Actions actions;
  const CallId call = d.Begin(request::Truncate{id, 0}, &actions);
  CHECK(d.Pass(absl::Seconds(30)).empty());
  d.Answer(11, call);
  CHECK(FinishOf(d.Answer(12, call), call).ok());
  CHECK(d.Pass(absl::Seconds(1.2)).size() == 1);
}

TEST_CASE("A stand-still of the coordinator ends no lease") {
  Leases d;
  d.Make(10);
  d.Pass(absl::Seconds(8));
  d.now += absl::Hours(1);
  CHECK(All<action::ContextEnded>(d.Handle(event::Tick{})).empty());
  CHECK(d.Pass(absl::Milliseconds(1800)).empty());
  CHECK(d.Pass(absl::Milliseconds(400)).size() == 1);
}

TEST_CASE("A context that was lost with its workers ends too") {
  Leases d;
  const ContextId id = d.Make(10);
  d.Handle(event::PeerDown{12, absl::UnavailableError("gone")});
  CHECK(d.core.Describe(id)->state == "lost");
  CHECK(d.Pass(absl::Seconds(10.2)).size() == 1);
}

TEST_CASE("When KV is full, evictable contexts go, the least recently used first, if so told") {
  const bool evict = GENERATE(false, true);
  Leases d({.evict = evict});
  const ContextId kept = d.Make(0);
  const ContextId first = d.Make(0, /*evictable=*/true);
  const ContextId second = d.Make(0, /*evictable=*/true);
  const ContextId third = d.Make(0, /*evictable=*/true);
  for (const ContextId id : {kept, second, first, third}) {
    d.Pass(absl::Milliseconds(50));
    REQUIRE(d.Append(id, 10).ok());
  }
  Actions actions;
  d.BeginAttend(second, 1, 10, &actions);  // in use
  d.kv_bytes = 99'000;
  d.Pass(absl::Milliseconds(100));
  const absl::Status full = d.Append(kept, 10, /*full=*/true);
  const auto ended = All<action::ContextEnded>(d.last);
  if (!evict) {
    CHECK(absl::IsResourceExhausted(full));
    CHECK(ended.empty());
    return;
  }
  CHECK(absl::IsUnavailable(full));
  REQUIRE(ended.size() == 1);
  CHECK(ended[0].context == first);
  CHECK(SentTo<wire::Release>(d.last).size() == 2);
  CHECK(d.core.Describe(first).status().message().find("least recently used evictable") !=
        std::string::npos);
  CHECK(d.core.Describe(second).ok());
  CHECK(d.core.Describe(third).ok());
  CHECK(d.core.Status(d.now).contexts_evicted == 1);
  // What would not be enough does not go.
  CHECK(absl::IsResourceExhausted(d.Append(kept, 2000, /*full=*/true)));
  CHECK(All<action::ContextEnded>(d.last).empty());
  // Nor where KV is not what was full.
  d.kv_bytes = 0;
  d.Pass(absl::Milliseconds(100));
  CHECK(absl::IsResourceExhausted(d.Append(kept, 10, /*full=*/true)));
  CHECK(All<action::ContextEnded>(d.last).empty());
}

TEST_CASE("A recovered context begins a new lease, as its spec says") {
  CoordinatorCore core{CoordinatorLimits{}, absl::Seconds(1), {2000, absl::Seconds(10)}};
  absl::Time now = absl::UnixEpoch();
  wire::Hello hello;
  hello.address = "addr11";
  hello.coordinator = 1000;
  hello.contexts = 1;
  core.Handle(now, event::Heard{11, hello});
  wire::Inventory inventory;
  inventory.epoch = 7;
  inventory.storage_id = inventory.context = 1001;
  inventory.spec = SmallSpec();
  inventory.spec.lease = 3;
  inventory.addresses = {"addr11"};
  inventory.layers.resize(2);
  core.Handle(now, event::Heard{11, inventory});
  const auto pass = [&](absl::Duration duration) {
    for (const absl::Time end = now + duration; now < end;) {
      now += absl::Milliseconds(50);
      core.Handle(now, event::Heard{11, wire::Heartbeat{}});
      if (now >= core.NextTimer()) core.Handle(now, event::Tick{});
    }
    return core.Describe(1001).ok();
  };
  CHECK(pass(absl::Milliseconds(2900)));
  CHECK(!pass(absl::Milliseconds(300)));
}

}  // namespace
}  // namespace annulus
