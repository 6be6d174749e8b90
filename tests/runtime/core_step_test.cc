// The coordinator's decisions on repetitions, Truncate, Fork, List and Step, event by event.
#include "tests/catch.h"
#include "tests/runtime/core_driver.h"

namespace annulus {
namespace {

using test::All;
using test::Driver;
using test::FinishOf;
using test::SentTo;

CallId Append(Driver& d, ContextId id, int64_t start, int64_t tokens, RequestKey key,
              Actions* actions) {
  return d.Begin(test::AppendOf(id, 0, start, tokens, key), actions);
}

CallId Truncate(Driver& d, ContextId id, int64_t tokens, Actions* actions) {
  return d.Begin(request::Truncate{id, tokens}, actions);
}

CallId Step(Driver& d, std::vector<request::WorkItem> items, Actions* actions) {
  return d.Begin(request::Work{std::move(items)}, actions);
}

Actions AnswerStep(Driver& d, PeerId peer, CallId call, std::vector<absl::Status> statuses) {
  wire::WorkDone done;
  done.request = call;
  for (absl::Status& status : statuses) done.items.push_back({d.epoch, std::move(status), 1});
  return d.Handle(event::Heard{peer, done});
}

const action::Finish* FinishIn(const Actions& actions) {
  for (const Action& action : actions) {
    if (const auto* finish = std::get_if<action::Finish>(&action)) return finish;
  }
  return nullptr;
}

TEST_CASE("A repeated append answers as the first did and appends nothing") {
  Driver d(2);
  const ContextId id = d.Create({11, 12});
  const RequestKey key{7, 1};
  Actions actions;
  const CallId first = Append(d, id, 0, 100, key, &actions);
  d.Handle(event::Prepared{first, {0, 1}});
  Actions repeated;
  const CallId early = Append(d, id, 0, 100, key, &repeated);
  CHECK(absl::IsUnavailable(FinishOf(repeated, early)));  // the first is in flight
  d.Answer(11, first);
  REQUIRE(FinishOf(d.Answer(12, first), first).ok());

  const CallId again = Append(d, id, 0, 100, key, &repeated);
  CHECK(FinishOf(repeated, again).ok());
  REQUIRE(FinishIn(repeated) != nullptr);
  CHECK(FinishIn(repeated)->items.at(0).tokens == 100);
  CHECK(All<action::Admit>(repeated).empty());
  CHECK(d.Committed(id) == 100);
  const CallId other = Append(d, id, 0, 90, key, &repeated);
  CHECK(absl::IsInvalidArgument(FinishOf(repeated, other)));
  const CallId foreign = Append(d, id, 0, 100, {8, 1}, &repeated);
  CHECK(absl::IsInvalidArgument(FinishOf(repeated, foreign)));

  // What was truncated since does not come back.
  const CallId cut = Truncate(d, id, 50, &actions);
  d.Answer(11, cut);
  CHECK(FinishOf(d.Answer(12, cut), cut).ok());
  const CallId late = Append(d, id, 0, 100, key, &repeated);
  CHECK(absl::IsAborted(FinishOf(repeated, late)));
}

TEST_CASE("Truncate forgets on every rank, at once, and not under an append") {
  Driver d(2);
  const ContextId id = d.CreateWithTokens({11, 12}, 100);
  Actions actions;
  const CallId attend = d.BeginAttend(id, 1, 90, &actions);
  const CallId append = Append(d, id, 100, 10, {}, &actions);
  const CallId refused = Truncate(d, id, 50, &actions);
  CHECK(absl::IsUnavailable(FinishOf(actions, refused)));
  d.Handle(event::GiveUp{append, absl::CancelledError("enough")});
  for (const int64_t odd : {101, -1}) {
    const CallId call = Truncate(d, id, odd, &actions);
    CHECK(absl::IsInvalidArgument(FinishOf(actions, call)));
  }

  const CallId cut = Truncate(d, id, 50, &actions);
  CHECK(SentTo<wire::Truncate>(actions) == std::vector<PeerId>{11, 12});
  CHECK(d.Committed(id) == 50);
  // An Attend that was admitted before finds its keys gone.
  CHECK(absl::IsAborted(FinishOf(d.Handle(event::Prepared{attend, {0, 1}}), attend)));
  d.Answer(11, cut);
  CHECK(FinishOf(d.Answer(12, cut), cut).ok());
}

TEST_CASE("A repeated upload of several pieces answers as the first did, piece by piece") {
  Driver d(2);
  const ContextId id = d.Create({11, 12});
  const auto append = [&](int64_t start, int64_t tokens, RequestKey key) {
    Actions actions;
    const CallId call = Append(d, id, start, tokens, key, &actions);
    if (All<action::Admit>(actions).empty()) return FinishOf(actions, call);
    d.Handle(event::Prepared{call, {0, 1}});
    d.Answer(11, call);
    return FinishOf(d.Answer(12, call), call);
  };
  REQUIRE(append(0, 64, {7, 1}).ok());
  REQUIRE(append(64, 64, {7, 2}).ok());
  REQUIRE(d.Committed(id) == 128);
  // Another try of the whole, which then goes on.
  CHECK(append(0, 64, {7, 1}).ok());
  CHECK(append(64, 64, {7, 2}).ok());
  CHECK(d.Committed(id) == 128);
  REQUIRE(append(128, 22, {7, 3}).ok());
  for (int piece = 0; piece < 2; ++piece) {
    CHECK(append(64 * piece, 64, {7, static_cast<uint64_t>(piece + 1)}).ok());
  }
  CHECK(d.Committed(id) == 150);
  // What is no piece of it: in another place, of another size, of another client, or a later one.
  CHECK(absl::IsInvalidArgument(append(0, 64, {7, 2})));
  CHECK(absl::IsInvalidArgument(append(0, 32, {7, 1})));
  CHECK(absl::IsInvalidArgument(append(0, 64, {8, 1})));
  CHECK(absl::IsInvalidArgument(append(64, 64, {7, 4})));
}

TEST_CASE("A repetition is aborted if others replaced what it appended before it was sent") {
  Driver d(2);
  const ContextId id = d.Create({11, 12});
  Actions actions;
  const auto append = [&](RequestKey key) {
    const CallId call = Append(d, id, 0, 100, key, &actions);
    d.Handle(event::Prepared{call, {0, 1}});
    d.Answer(11, call);
    CHECK(FinishOf(d.Answer(12, call), call).ok());
  };
  append({7, 1});
  const CallId again = Step(d, {{id, 0, 0, 100, 100, {7, 1}}}, &actions);
  CHECK(!All<action::Admit>(actions).at(0).items[0].appends);
  const CallId cut = Truncate(d, id, 0, &actions);
  d.Answer(11, cut);
  CHECK(FinishOf(d.Answer(12, cut), cut).ok());
  append({8, 1});
  CHECK(absl::IsAborted(FinishOf(d.Handle(event::Prepared{again, {0, 1}}), again)));
}

TEST_CASE("A fork has the parent's committed tokens and goes where the parent is") {
  Driver d(2, {.contexts_max = 2});
  const ContextId parent = d.CreateWithTokens({11, 12}, 100);
  Actions actions;
  Append(d, parent, 100, 10, {}, &actions);  // in flight: not part of the fork
  const request::Fork fork{parent, std::nullopt};
  const CallId call = d.Begin(fork, &actions);
  REQUIRE(SentTo<wire::Fork>(actions) == std::vector<PeerId>{11, 12});
  d.Answer(11, call);
  actions = d.Answer(12, call);
  REQUIRE(FinishOf(actions, call).ok());
  const ContextId child = FinishIn(actions)->context;
  CHECK(child != parent);
  CHECK(d.Committed(child) == 100);
  const CallId third = d.Begin(fork, &actions);
  CHECK(absl::IsResourceExhausted(FinishOf(actions, third)));

  const auto all = d.core.List({});
  REQUIRE(all.ok());
  CHECK(all->size() == 2);
  CHECK(d.core.List({.after = parent, .limit = 5})->at(0).id == child);
  CHECK(d.core.List({.after = child}).value().empty());
  CHECK(absl::IsInvalidArgument(d.core.List({.limit = 0}).status()));
  CHECK(absl::IsInvalidArgument(d.core.List({.limit = 1001}).status()));
}

TEST_CASE("Items of a step end for themselves: committed, or taken back everywhere") {
  Driver d(2);
  const ContextId a = d.CreateWithTokens({11, 12}, 100);
  const ContextId b = d.CreateWithTokens({11, 12}, 200);
  Actions actions;
  const CallId call = Step(d,
                           {{a, 0, 100, 1, 1, {5, 1}},
                            {b, 0, 199, 1, 1, {5, 2}},  // not the committed tokens
                            {b, 0, 200, 1, 0, {5, 3}},
                            {b, 0, 200, 0, 1, {}},
                            {77, 0, 0, 1, 0, {}},
                            {b, 0, 200, 2, 1, {}},
                            {b, 0, 200, 0, 0, {}}},
                           &actions);
  const auto admits = All<action::Admit>(actions);
  REQUIRE(admits.size() == 1);
  const auto& items = admits[0].items;
  CHECK(admits[0].workers == std::vector<WorkerId>{1, 2});
  CHECK(items[0].live());
  CHECK(absl::IsInvalidArgument(items[1].status));
  CHECK(items[2].live());
  CHECK(items[3].live());
  CHECK(!items[3].appends);
  CHECK(absl::IsNotFound(items[4].status));
  CHECK(absl::IsInvalidArgument(items[5].status));
  CHECK(absl::IsInvalidArgument(items[6].status));

  actions = d.Handle(event::Prepared{
      call, {{0, {0, 2}}, {1, {0, 2}}}, {{3, absl::InvalidArgumentError("q is not finite")}}});
  CHECK(All<action::SendTask>(actions).size() == 2);
  actions = AnswerStep(d, 11, call, {absl::OkStatus(), absl::OkStatus()});
  CHECK(All<action::Deliver>(actions).size() == 1);
  CHECK(d.Committed(a) == 100);
  actions = AnswerStep(d, 12, call, {absl::OkStatus(), absl::ResourceExhaustedError("full")});
  CHECK(SentTo<wire::TruncateLayer>(actions) == std::vector<PeerId>{12, 11});  // b begins at 12
  REQUIRE(FinishIn(actions) != nullptr);
  const std::vector<action::ItemEnd>& ends = FinishIn(actions)->items;
  CHECK(ends[0].status.ok());
  CHECK(ends[0].tokens == 101);
  CHECK(ends[2].status.message() == "worker 2 (w2): full");
  CHECK(absl::IsInvalidArgument(ends[3].status));
  CHECK(d.Committed(a) == 101);
  CHECK(d.Committed(b) == 200);

  // Repeated, the one that went well only attends; the other one is tried anew.
  const CallId again = Step(d, {{a, 0, 100, 1, 1, {5, 1}}, {b, 0, 200, 1, 0, {5, 3}}}, &actions);
  const auto repeated = All<action::Admit>(actions).at(0).items;
  CHECK(!repeated[0].appends);
  CHECK(repeated[0].attends);
  CHECK(repeated[1].appends);
  d.Handle(event::Prepared{again, {{0, {0, 1}}, {1, {0, 1}}}});
  AnswerStep(d, 11, again, {absl::OkStatus(), absl::OkStatus()});
  AnswerStep(d, 12, again, {absl::OkStatus(), absl::OkStatus()});
  CHECK(d.Committed(a) == 101);
  CHECK(d.Committed(b) == 201);
}

TEST_CASE("A step loses the items of a lost worker and of a released context only") {
  Driver d(2);
  const ContextId both = d.CreateWithTokens({11, 12}, 10);
  const ContextId released = d.CreateWithTokens({11, 12}, 10);
  Actions actions;
  const CallId call = Step(d, {{both, 0, 10, 1, 1, {}}, {released, 0, 10, 1, 1, {}}}, &actions);
  d.Handle(event::Prepared{call, {{0, {0, 1}}, {1, {0, 1}}}});
  d.Begin(request::Release{released}, &actions);
  AnswerStep(d, 11, call, {absl::OkStatus(), absl::OkStatus()});
  actions = d.Handle(event::PeerDown{12, absl::UnavailableError("gone")});
  const auto finishes = All<action::Finish>(actions);
  REQUIRE(!finishes.empty());
  REQUIRE(finishes[0].items.size() == 2);
  CHECK(absl::IsUnavailable(finishes[0].items[0].status));
  CHECK(absl::IsCancelled(finishes[0].items[1].status));
}

TEST_CASE("A step's deadline takes back what was not answered") {
  Driver d(1);
  const ContextId id = d.Create({11});
  const absl::Time deadline = d.now + absl::Milliseconds(40);
  Actions actions;
  const CallId call = d.Begin(request::Work{{{id, 0, 0, 5, 5, {}}}}, &actions, deadline);
  d.Handle(event::Prepared{call, {0}});
  d.now = deadline;
  actions = d.Handle(event::Tick{});
  REQUIRE(FinishIn(actions) != nullptr);
  CHECK(absl::IsDeadlineExceeded(FinishIn(actions)->items.at(0).status));
  CHECK(SentTo<wire::TruncateLayer>(actions).size() == 1);
  CHECK(SentTo<wire::Cancel>(actions).size() == 1);
  CHECK(AnswerStep(d, 11, call, {absl::OkStatus()}).empty());
  CHECK(d.Committed(id) == 0);
  d.BeginAppend(id, 0, 5, &actions);
  CHECK(All<action::Admit>(actions).size() == 1);
}

}  // namespace
}  // namespace annulus
