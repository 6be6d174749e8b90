// The coordinator's decisions, event by event.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tests/catch.h"
#include "tests/runtime/core_driver.h"

namespace annulus {
namespace {

using test::All;
using test::AppendOf;
using test::Driver;
using test::FinishOf;
using test::SentTo;
using test::SmallSpec;

TEST_CASE("An append commits when every rank has it, and not before") {
  Driver d(2);
  const ContextId id = d.Create({11, 12});
  Actions actions;
  const CallId call = d.BeginAppend(id, 0, 100, &actions);
  REQUIRE(All<action::Admit>(actions).size() == 1);
  const ShardMap& map = *All<action::Admit>(actions)[0].items.at(0).map;
  REQUIRE(map.holders.size() == 2);
  for (int rank = 0; rank < 2; ++rank) {
    CHECK(map.holders[rank].rank == rank);
    CHECK(map.holders[rank].worker == static_cast<WorkerId>(rank + 1));
  }
  actions = d.Handle(event::Prepared{call, {0, 1}});
  CHECK(All<action::SendTask>(actions).size() == 2);
  CHECK(All<action::Finish>(d.Answer(12, call)).empty());
  CHECK(All<action::Finish>(d.Answer(12, call)).empty());  // twice counts once
  CHECK(d.Committed(id) == 0);

  Actions second;
  const CallId other = d.BeginAppend(id, 0, 100, &second);
  CHECK(absl::IsUnavailable(FinishOf(second, other)));

  actions = d.Answer(11, call);
  CHECK(FinishOf(actions, call).ok());
  CHECK(All<action::Finish>(actions)[0].items.at(0).tokens == 100);
  CHECK(d.Committed(id) == 100);
  const CallId behind = d.BeginAppend(id, 99, 10, &second);
  CHECK(FinishOf(second, behind).message() ==
        "start: 99; expected 100, the layer's committed tokens");
}

TEST_CASE("A worker of another protocol is told what to do") {
  Driver d(1);
  wire::Hello hello;
  hello.protocol = wire::kProtocol - 1;
  const Actions actions = d.Handle(event::Heard{99, hello});
  const auto sent = All<action::Send>(actions);
  REQUIRE(sent.size() == 1);
  CHECK(sent[0].peer == 99);
  CHECK(std::get<wire::Refused>(sent[0].body).why ==
        absl::StrCat("protocol: ", wire::kProtocol - 1, " of the worker; expected ",
                     wire::kProtocol,
                     ", which the coordinator speaks: run the same release of annulus on both"));
  CHECK(d.core.Status(d.now).workers.size() == 1);
}

TEST_CASE("A failed append trims every rank and can be tried again") {
  Driver d(2);
  const ContextId id = d.Create({11, 12});
  Actions actions;
  const CallId call = d.BeginAppend(id, 0, 100, &actions);
  d.Handle(event::Prepared{call, {0, 1}});
  d.Answer(11, call);
  actions = d.Answer(12, call, absl::ResourceExhaustedError("full"));
  CHECK(FinishOf(actions, call).message() == "worker 2 (w2): full");
  CHECK(SentTo<wire::TruncateLayer>(actions) == std::vector<PeerId>{11, 12});
  CHECK(d.Committed(id) == 0);
  const CallId again = d.BeginAppend(id, 0, 50, &actions);
  d.Handle(event::Prepared{again, {0, 1}});
  // An answer to the call before does not count for this one.
  CHECK(All<action::Finish>(d.Answer(11, call)).empty());
  d.Answer(11, again);
  CHECK(FinishOf(d.Answer(12, again), again).ok());
  CHECK(d.Committed(id) == 50);
}

TEST_CASE("An attend delivers each planned rank once, then finishes") {
  Driver d(2);
  const ContextId id = d.CreateWithTokens({11, 12}, 100);
  Actions actions;
  const CallId call = d.BeginAttend(id, 10, 100, &actions);
  d.Handle(event::Prepared{call, {0, 1}});
  actions = d.Answer(12, call);
  REQUIRE(All<action::Deliver>(actions).size() == 1);
  CHECK(All<action::Deliver>(actions)[0].rank == 1);
  CHECK(d.Answer(12, call).empty());
  actions = d.Answer(11, call);
  CHECK(All<action::Deliver>(actions).size() == 1);
  CHECK(FinishOf(actions, call).ok());
  CHECK(d.Answer(11, call).empty());

  // A plan in which nobody takes part has an answer too.
  const CallId nothing = d.BeginAttend(id, 10, 100, &actions);
  CHECK(FinishOf(d.Handle(event::Prepared{nothing, {}}), nothing).ok());
}

TEST_CASE("An answer of another epoch ends the call, and never counts") {
  Driver d(2);
  const ContextId id = d.CreateWithTokens({11, 12}, 100);
  Actions actions;
  const CallId call = d.BeginAttend(id, 1, 100, &actions);
  d.Handle(event::Prepared{call, {0, 1}});
  actions = d.Answer(11, call, absl::OkStatus(), d.epoch + 1);
  CHECK(All<action::Deliver>(actions).empty());
  CHECK(absl::IsInternal(FinishOf(actions, call)));
}

TEST_CASE("The error that caused the others is the one reported") {
  Driver d(3);
  const ContextId id = d.Create({11, 12, 13});
  Actions actions;
  CallId call = d.BeginAppend(id, 0, 100, &actions);
  d.Handle(event::Prepared{call, {0, 1, 2}});
  for (const PeerId peer : {11, 12, 13}) d.Answer(peer, call);
  call = d.BeginAttend(id, 1, 100, &actions);
  d.Handle(event::Prepared{call, {0, 1, 2}});
  actions = d.Answer(11, call, absl::UnavailableError("a peer aborted"));
  CHECK(All<action::Finish>(actions).empty());
  CHECK(SentTo<wire::Cancel>(actions) == std::vector<PeerId>{12, 13});
  CHECK(FinishOf(d.Answer(13, call, absl::DataLossError("flipped")), call).message() ==
        "worker 3 (w3): flipped");

  // When no better error comes, this one is given soon.
  call = d.BeginAttend(id, 1, 100, &actions);
  d.Handle(event::Prepared{call, {0, 1, 2}});
  d.Answer(11, call, absl::UnavailableError("a peer aborted"));
  CHECK(d.core.NextTimer() == d.now + absl::Milliseconds(50));
  d.now += absl::Milliseconds(50);
  CHECK(absl::IsUnavailable(FinishOf(d.Handle(event::Tick{}), call)));
}

TEST_CASE("A worker whose long answer is under way is not silent") {
  Driver d(2);
  for (int i = 0; i < 30; ++i) {
    d.now += absl::Milliseconds(100);
    d.Beat(11);
    // Nor is the coordinator, for the worker.
    CHECK(SentTo<wire::HeartbeatSeen>(d.Handle(event::PartHeard{12})) == std::vector<PeerId>{12});
    CHECK(d.Handle(event::PartHeard{99}).empty());  // of nobody who has joined
    CHECK(d.Handle(event::Tick{}).empty());
  }
  CHECK(d.core.Status(d.now).workers.at(1).state == "ready");
}

TEST_CASE("A silent worker is fenced, its calls end, its contexts are lost, new ones go on") {
  Driver d(2);
  const ContextId id = d.CreateWithTokens({11, 12}, 100);
  const uint64_t epoch = d.core.Status(d.now).epoch;
  Actions actions;
  const CallId waiting = d.BeginAttend(id, 1, 100, &actions);
  d.Handle(event::Prepared{waiting, {0, 1}});
  const CallId planning = d.BeginAttend(id, 1, 100, &actions);
  for (int i = 0; i < 9; ++i) {
    d.now += absl::Milliseconds(100);
    d.Beat(11);
    CHECK(d.Handle(event::Tick{}).empty());
  }
  d.now += absl::Milliseconds(100);
  actions = d.Handle(event::Tick{});
  REQUIRE(All<action::Drop>(actions).size() == 1);
  CHECK(All<action::Drop>(actions)[0].peer == 12);
  CHECK(absl::IsUnavailable(FinishOf(actions, waiting)));
  CHECK(absl::IsUnavailable(FinishOf(actions, planning)));
  CHECK(SentTo<wire::Cancel>(actions) == std::vector<PeerId>{11});
  CHECK(d.core.Status(d.now).epoch == epoch + 1);
  CHECK(d.core.Status(d.now).workers.at(1).state == "lost");
  CHECK(d.core.Describe(id)->state == "lost");

  // Whatever the fenced worker says later changes nothing.
  CHECK(d.Answer(12, waiting).empty());
  d.Beat(12);
  CHECK(d.core.Status(d.now).workers.at(1).state == "lost");
  CHECK(d.Handle(event::Prepared{planning, {0, 1}}).empty());

  const CallId late = d.BeginAttend(id, 1, 100, &actions);
  CHECK(absl::IsDataLoss(FinishOf(actions, late)));
  const CallId released = d.Begin(request::Release{id}, &actions);
  CHECK(SentTo<wire::Release>(actions) == std::vector<PeerId>{11});
  CHECK(FinishOf(d.Answer(11, released, absl::OkStatus(), epoch + 1), released).ok());
  CHECK(d.Create({11}) != id);
}

TEST_CASE("A coordinator that stood still does not blame its workers") {
  Driver d(1);
  d.now += absl::Seconds(30);
  CHECK(d.Handle(event::Tick{}).empty());
  CHECK(d.core.Status(d.now).workers.at(0).state == "ready");
  CHECK(d.core.NextTimer() <= d.now + absl::Milliseconds(250));
}

TEST_CASE("Deadlines end calls in every phase") {
  Driver d(1);
  const ContextId id = d.Create({11});
  const request::Work append = AppendOf(id, 0, 0, 10);
  absl::Time deadline = d.now + absl::Milliseconds(40);
  Actions actions;
  const CallId planning = d.Begin(append, &actions, deadline);
  CHECK(d.core.NextTimer() == deadline);
  d.now = deadline;
  CHECK(absl::IsDeadlineExceeded(FinishOf(d.Handle(event::Tick{}), planning)));
  const CallId dead = d.Begin(append, &actions, deadline);
  CHECK(absl::IsDeadlineExceeded(FinishOf(actions, dead)));
  deadline += absl::Milliseconds(40);
  const CallId waiting = d.Begin(append, &actions, deadline);
  d.Handle(event::Prepared{waiting, {0}});
  d.now = deadline;
  actions = d.Handle(event::Tick{});
  CHECK(absl::IsDeadlineExceeded(FinishOf(actions, waiting)));
  CHECK(SentTo<wire::TruncateLayer>(actions).size() == 1);
}

TEST_CASE("Every bound is named, and what it held is given back") {
  Driver d(1, {.contexts_max = 1,
               .in_flight_max = 2,
               .in_flight_bytes_max = 40000,
               .request_bytes_max = 30000});
  const ContextId id = d.Create({11});
  Actions actions;
  const request::Create create{SmallSpec()};
  const CallId second = d.Begin(create, &actions);
  CHECK(absl::IsResourceExhausted(FinishOf(actions, second)));
  CHECK(FinishOf(actions, second).message() ==
        "contexts_max: 1; 1 in use, this context needs 1 more; release contexts");

  // An appended token takes 2 heads · 32 dims · 2 bytes.
  const CallId large = d.BeginAppend(id, 0, 235, &actions);
  CHECK(absl::IsInvalidArgument(FinishOf(actions, large)));
  CHECK(FinishOf(actions, large).message().find("request_bytes_max") != std::string::npos);
  const CallId first = d.BeginAppend(id, 0, 234, &actions);
  CHECK(All<action::Admit>(actions).size() == 1);
  const CallId many = d.Begin(AppendOf(id, 1, 0, 100), &actions);
  CHECK(absl::IsResourceExhausted(FinishOf(actions, many)));
  CHECK(FinishOf(actions, many).message().find("in_flight_bytes_max") != std::string::npos);
  d.Begin(AppendOf(id, 1, 0, 50), &actions);
  CHECK(All<action::Admit>(actions).size() == 1);
  const CallId third = d.BeginAttend(id, 1, 1, &actions);
  CHECK(absl::IsInvalidArgument(FinishOf(actions, third)));  // nothing is committed yet
  d.Handle(event::GiveUp{first, absl::CancelledError("enough")});
  d.Begin(AppendOf(id, 0, 0, 234), &actions);
  CHECK(All<action::Admit>(actions).size() == 1);
  const CallId fourth = d.Begin(AppendOf(id, 0, 0, 1), &actions);
  CHECK(absl::IsUnavailable(FinishOf(actions, fourth)));
}

TEST_CASE("What a call takes beside its tensors counts once it is known, and is given back") {
  Driver d(2, {.in_flight_bytes_max = 40000});
  const ContextId id = d.CreateWithTokens({11, 12}, 100);
  Actions actions;
  for (const bool too_much : {true, false, true}) {
    const CallId attend = d.BeginAttend(id, 1, 100, &actions);
    REQUIRE(All<action::Admit>(actions).size() == 1);
    actions = d.Handle(
        event::Prepared{.call = attend, .shares = {0, 1}, .bytes = too_much ? 40000 : 30000});
    CHECK(All<action::SendTask>(actions).size() == (too_much ? 0 : 2));
    if (!too_much) {
      const CallId other = d.BeginAttend(id, 1, 100, &actions);
      actions = d.Handle(event::Prepared{.call = other, .shares = {0, 1}, .bytes = 30000});
      CHECK(absl::IsResourceExhausted(FinishOf(actions, other)));
      d.Handle(event::GiveUp{attend, absl::CancelledError("enough")});
      continue;
    }
    CHECK(absl::IsResourceExhausted(FinishOf(actions, attend)));
    CHECK(FinishOf(actions, attend).message().find("in_flight_bytes_max: 40000; ") !=
          std::string::npos);
  }
}

TEST_CASE("A context is released under its calls") {
  Driver d(2);
  const ContextId id = d.CreateWithTokens({11, 12}, 100);
  Actions actions;
  const CallId attend = d.BeginAttend(id, 1, 100, &actions);
  d.Handle(event::Prepared{attend, {0, 1}});
  const CallId released = d.Begin(request::Release{id}, &actions);
  CHECK(absl::IsCancelled(FinishOf(actions, attend)));
  CHECK(SentTo<wire::Release>(actions).size() == 2);
  CHECK(d.Answer(11, attend).empty());
  CHECK(absl::IsNotFound(d.core.Describe(id).status()));
  d.Answer(11, released);
  CHECK(FinishOf(d.Handle(event::PeerDown{12, absl::UnavailableError("gone")}), released).ok());
}

TEST_CASE("A context that a rank cannot open is taken back everywhere") {
  Driver d(2);
  Actions actions;
  const CallId call = d.Begin(request::Create{SmallSpec()}, &actions);
  d.epoch = 2;
  d.Answer(11, call);
  actions = d.Answer(12, call, absl::InternalError("no"));
  CHECK(absl::IsInternal(FinishOf(actions, call)));
  CHECK(SentTo<wire::Release>(actions) == std::vector<PeerId>{11, 12});
  CHECK(d.core.Status(d.now).contexts.empty());
}

TEST_CASE("A worker that missed a message is lost, one that could not take tensors is not") {
  Driver d(2);
  const ContextId id = d.CreateWithTokens({11, 12}, 100);
  Actions actions;
  const CallId call = d.BeginAttend(id, 1, 100, &actions);
  d.Handle(event::Prepared{call, {0, 1}});
  actions = d.Handle(event::SendFailed{11, call, absl::ResourceExhaustedError("queue")});
  CHECK(absl::IsResourceExhausted(FinishOf(actions, call)));
  CHECK(All<action::Drop>(actions).empty());
  actions = d.Handle(event::SendFailed{11, 0, absl::ResourceExhaustedError("queue")});
  CHECK(All<action::Drop>(actions).size() == 1);
}

}  // namespace
}  // namespace annulus
