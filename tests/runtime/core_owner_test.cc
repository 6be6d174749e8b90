// Whose contexts callers may know of, event by event.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "runtime/fields/values.h"
#include "runtime/fields/write.h"
#include "tests/catch.h"
#include "tests/runtime/core_driver.h"

namespace annulus {
namespace {

using test::All;
using test::SmallSpec;

const Caller kAnn{"ann", "a", Role::kTenant};
const Caller kBob{"bob", "b", Role::kTenant};
const Caller kBobsReader{"eve", "b", Role::kReader};
const Caller kNobodysReader{"probe", "", Role::kReader};
const Caller kAdmin{"root", "ops", Role::kAdmin};

// Two workers, 11 and 12, and calls of callers.
struct Owners : test::Driver {
  Owners() : Driver(2) {}

  // What comes of a request that ends at once or opens a context.
  action::Finish Ask(const Caller& caller, Request request) {
    const CallId call = ++last_call;
    if (std::holds_alternative<request::Work>(request)) has_items.insert(call);
    Actions actions =
        Handle(event::Begin{call, std::move(request), absl::InfiniteFuture(), caller});
    for (const action::Send& send : All<action::Send>(actions)) {
      if (const auto* open = std::get_if<wire::Open>(&send.body)) spec = open->spec;
      if (const auto* open = std::get_if<wire::Open>(&send.body)) epoch = open->epoch;
      if (const auto* fork = std::get_if<wire::Fork>(&send.body)) epoch = fork->epoch;
    }
    for (const PeerId peer : {11, 12}) {
      if (All<action::Finish>(actions).empty()) actions = Answer(peer, call);
    }
    REQUIRE(All<action::Finish>(actions).size() == 1);
    return All<action::Finish>(actions)[0];
  }
  ContextId Make(const Caller& caller, std::string owner = {},
                 std::vector<std::string> patterns = {}) {
    request::Create create{SmallSpec()};
    create.spec.owner = std::move(owner);
    create.spec.patterns = std::move(patterns);
    const action::Finish finish = Ask(caller, create);
    INFO(finish.status);
    REQUIRE(finish.status.ok());
    return finish.context;
  }
  absl::Status Refusal(const Caller& caller, Request request) {
    const action::Finish finish = Ask(caller, std::move(request));
    return finish.items.size() == 1 ? finish.items[0].status : finish.status;
  }
  // Everything that names a context, with what a caller is told of it.
  std::vector<absl::Status> TellAll(const Caller& caller, ContextId id) {
    request::Work attend = test::AppendOf(id, 0, 1, 0);
    attend.items[0].kind = request::WorkItem::Kind::kAttend;
    attend.items[0].q_tokens = 1;
    request::Work step = test::AppendOf(id, 0, 0, 1);
    step.items[0].kind = request::WorkItem::Kind::kStep;
    request::Work direct = test::AppendOf(id, 0, 0, 1);
    direct.direct = true;
    return {Refusal(caller, test::AppendOf(id, 0, 0, 1)),
            Refusal(caller, attend),
            Refusal(caller, step),
            Refusal(caller, direct),
            Refusal(caller, request::Fork{id, {}}),
            Refusal(caller, request::Truncate{id, 0}),
            Refusal(caller, request::Release{id}),
            Refusal(caller, request::KeepAlive{{id}}),
            core.Describe(id, caller).status()};
  }

  ContextSpec spec;  // that workers were last told to open
};

// The same with another id.
std::vector<std::string> Texts(const std::vector<absl::Status>& told, ContextId id) {
  std::vector<std::string> texts;
  for (const absl::Status& status : told) {
    texts.push_back(absl::StrReplaceAll(status.ToString(), {{absl::StrCat(id), "ID"}}));
  }
  return texts;
}

TEST_CASE("a context belongs to its maker's tenant, and only admins make others'") {
  Owners d;
  const ContextId id = d.Make(kAnn);
  CHECK(d.spec.owner == "a");  // workers are told, so it outlives the coordinator
  CHECK(d.core.Describe(id, kAnn)->spec.owner == "a");
  CHECK(d.core.Describe(d.Make(kAnn, "a"), kAnn).ok());
  CHECK(d.core.Describe(d.Make(kAdmin, "a"), kAnn)->spec.owner == "a");
  CHECK(d.core.Describe(d.Make(kAdmin))->spec.owner == "ops");
  CHECK(d.core.Describe(d.Make(Caller()))->spec.owner.empty());  // nobody is asked who they are
  request::Create create{SmallSpec()};
  create.spec.owner = "b";
  CHECK(d.Refusal(kAnn, create) ==
        absl::PermissionDeniedError("owner: \"b\"; expected none, or \"a\", the caller's tenant"));
  // A child is its parent's, whoever made it.
  const action::Finish fork = d.Ask(kAdmin, request::Fork{id, {}});
  REQUIRE(fork.status.ok());
  CHECK(d.core.Describe(fork.context, kAnn)->spec.owner == "a");
}

TEST_CASE("another's context is told of as one that never was") {
  Owners d;
  const ContextId id = d.Make(kAnn);
  const ContextId nobodys = d.Make(Caller());
  for (const Caller& caller : {kBob, kBobsReader, kNobodysReader}) {
    INFO(caller.name);
    const ContextId never = 99;
    const auto expected = Texts(d.TellAll(caller, never), never);
    CHECK(expected ==
          std::vector<std::string>(expected.size(), "NOT_FOUND: context ID does not exist"));
    CHECK(Texts(d.TellAll(caller, id), id) == expected);
    CHECK(Texts(d.TellAll(caller, nobodys), nobodys) == expected);
  }
  CHECK(d.core.Describe(id, kAnn).ok());  // nothing has touched it
  CHECK(d.core.Describe(id, {"r", "a", Role::kReader}).ok());
}

TEST_CASE("another's calls renew no lease, and why it ended is its owner's to know") {
  Owners d;
  const ContextId id = d.Make(kAnn);
  for (int i = 0; i < 760; ++i) {  // a longer gap would count as a stand-still, not as time
    d.now += absl::Milliseconds(400);
    for (const PeerId peer : {11, 12}) d.Beat(peer);
    if (i == 700) CHECK(absl::IsNotFound(d.Refusal(kBob, request::KeepAlive{{id}})));
    d.Handle(event::Tick{});
  }
  CHECK(d.core.Describe(id, kAnn).status().message().find("its lease of 300 s") !=
        std::string::npos);
  CHECK(d.core.Describe(id, kBob).status() ==
        absl::NotFoundError(absl::StrCat("context ", id, " does not exist")));
  CHECK(d.core.Status(d.now, kAnn).contexts_expired == 1);
  CHECK(d.core.Status(d.now, kBob).contexts_expired == 0);
  CHECK(d.core.Status(d.now).contexts_expired == 1);
}

TEST_CASE("lists and the status hold what is the caller's, and the cluster's health") {
  Owners d;
  const ContextId of_ann = d.Make(kAnn);
  const ContextId of_bob = d.Make(kBob);
  const auto listed = [&](const Caller& caller) {
    std::vector<ContextId> ids;
    const std::vector<ContextInfo> infos = d.core.List({}, caller).value();
    for (const ContextInfo& info : infos) ids.push_back(info.id);
    return ids;
  };
  CHECK(listed(kAnn) == std::vector<ContextId>{of_ann});
  CHECK(listed(kBobsReader) == std::vector<ContextId>{of_bob});
  CHECK(listed(kAdmin) == std::vector<ContextId>{of_ann, of_bob});
  CHECK(listed(kNobodysReader).empty());
  CHECK(d.core.List({.limit = 1}, kBob)->at(0).id == of_bob);  // pages are of what is seen

  d.Handle(
      event::Begin{++d.last_call, test::AppendOf(of_ann, 0, 0, 1), absl::InfiniteFuture(), kAnn});
  const ClusterStatus seen = d.core.Status(d.now, kBob);
  REQUIRE(seen.contexts.size() == 1);
  CHECK(seen.contexts[0].id == of_bob);
  CHECK(seen.in_flight == 0);
  CHECK(seen.in_flight_bytes == 0);
  REQUIRE(seen.workers.size() == 2);
  CHECK(seen.workers[0].state == "ready");
  CHECK(seen.workers[0].address.empty());
  CHECK(d.core.Status(d.now, kAnn).in_flight == 1);
  CHECK(d.core.Status(d.now, kAnn).in_flight_bytes > 0);
  CHECK(d.core.Status(d.now, kAdmin).contexts.size() == 2);
  CHECK(d.core.Status(d.now, kAdmin).workers[0].address == "addr1");
}

TEST_CASE("a context that lets go of what no pattern needs has one") {
  Owners d;
  request::Create create{SmallSpec()};
  create.spec.kv_efficient = true;
  CHECK(d.Refusal(kAnn, create).message() ==
        "patterns: 0; expected at least 1 with kv_efficient: they say what may be let go");
}

TEST_CASE("long patterns cut a list into pages, and are no part of a status") {
  Owners d;
  const std::string pattern = "causal" + std::string(60'000, ' ');
  constexpr int kContexts = 300;
  for (int i = 0; i < kContexts; ++i) d.Make(kAnn, {}, {pattern});
  std::vector<ContextInfo> infos = d.core.List({}, kAnn).value();
  CHECK(infos.size() == (8 << 20) / pattern.size());
  CHECK(infos[0].spec.patterns == std::vector<std::string>{pattern});
  size_t listed = 0;
  for (; !infos.empty(); infos = d.core.List({.after = infos.back().id}, kAnn).value()) {
    listed += infos.size();
  }
  CHECK(listed == kContexts);
  const ClusterStatus status = d.core.Status(d.now, kAnn);
  REQUIRE(status.contexts.size() == kContexts);
  for (const ContextInfo& info : status.contexts) {
    CHECK(info.spec.patterns.empty());
    ContextInfo described = d.core.Describe(info.id, kAnn).value();
    described.spec.patterns.clear();
    CHECK(BytesOf(info) == BytesOf(described));
  }
}

TEST_CASE("owners outlive the coordinator, and nobody else hears that a context comes back") {
  constexpr ContextId kContext = 1001;
  CoordinatorCore core(CoordinatorLimits{}, absl::Seconds(1), {2000, absl::Seconds(10)});
  absl::Time now = absl::UnixEpoch();
  core.Handle(now, event::Tick{});
  const auto join = [&](PeerId peer) {
    wire::Hello hello;
    hello.address = absl::StrCat("addr", peer);
    hello.coordinator = 1000;
    hello.contexts = 1;
    core.Handle(now, event::Heard{peer, hello});
  };
  const auto tell = [&](PeerId peer, int rank) {
    wire::Inventory inventory;
    inventory.epoch = 7;
    inventory.storage_id = inventory.context = kContext;
    inventory.spec = SmallSpec();
    inventory.spec.owner = "a";
    inventory.rank = rank;
    inventory.addresses = {"addr11", "addr12"};
    inventory.layers.resize(2);
    core.Handle(now, event::Heard{peer, inventory});
  };
  const auto seen = [&](const Caller& caller, ContextId id) {
    return Texts({core.Describe(id, caller).status()}, id)[0];
  };
  join(11);
  join(12);
  tell(11, 0);
  CHECK(seen(kAnn, kContext).find("is being recovered: 1 of 2") != std::string::npos);
  CHECK(seen(kBob, kContext) == seen(kBob, kContext + 1));
  CHECK(absl::IsUnavailable(core.List({}, kAnn).status()));
  CHECK(core.List({}, kBob).value().empty());
  tell(12, 1);
  CHECK(core.Describe(kContext, kAnn)->spec.owner == "a");
  CHECK(seen(kBob, kContext) == seen(kBob, kContext + 1));  // what comes back may still be its own
  now += absl::Seconds(11);
  core.Handle(now, event::Tick{});
  CHECK(seen(kBob, kContext) == "NOT_FOUND: context ID does not exist");
  CHECK(seen(kBob, kContext) == seen(kBob, kContext + 1));
}

}  // namespace
}  // namespace annulus
