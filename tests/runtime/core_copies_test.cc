// What a coordinator makes of contexts that two workers hold each page of, event by event.
#include <vector>

#include "annulus/retry_hint.h"
#include "tests/catch.h"
#include "tests/runtime/core_driver.h"

namespace annulus {
namespace {

using test::All;
using test::Driver;
using test::FinishOf;
using test::SentTo;
using test::SmallSpec;
using test::TokensOf;

const absl::Status kGone = absl::UnavailableError("gone");

ContextSpec TwoCopies() {
  ContextSpec spec = SmallSpec();
  spec.replicas = 2;
  return spec;
}

// Created over `workers` workers, peers 11, 12, …, which all have opened it.
struct Replicated : Driver {
  explicit Replicated(int workers) : Driver(workers) {
    Actions actions;
    const CallId call = Begin(request::Create{TwoCopies()}, &actions);
    for (const action::Send& send : All<action::Send>(actions)) {
      opens.emplace_back(send.peer, std::get<wire::Open>(send.body));
    }
    epoch = opens.at(0).second.epoch;
    for (const auto& [peer, open] : opens) actions = Answer(peer, call);
    REQUIRE(FinishOf(actions, call).ok());
    id = All<action::Finish>(actions).at(0).context;
  }

  // Appends to layer 0; whose answers it waits for are not given.
  CallId StartAppend(int64_t start, int64_t tokens) {
    Actions actions;
    const CallId call = BeginAppend(id, start, tokens, &actions);
    const auto admits = All<action::Admit>(actions);
    REQUIRE(admits.size() == 1);
    std::vector<event::Share> all;
    for (size_t i = 0; i < admits[0].workers.size(); ++i) all.emplace_back(static_cast<int>(i));
    sent = All<action::SendTask>(Handle(event::Prepared{call, all}));
    return call;
  }
  void Append(int64_t start, int64_t tokens) {
    const CallId call = StartAppend(start, tokens);
    Actions actions;
    for (const action::SendTask& task : sent) actions = Answer(task.peer, call);
    REQUIRE(FinishOf(actions, call).ok());
  }
  Actions Lose(PeerId peer) {
    Actions actions = Handle(event::PeerDown{peer, kGone});
    for (const action::Send& send : All<action::Send>(actions)) {
      if (const auto* resume = std::get_if<wire::Resume>(&send.body)) epoch = resume->epoch;
    }
    return actions;
  }
  std::string State() const { return core.Describe(id)->state; }
  // The peers that hold the same as this one, itself included.
  std::vector<PeerId> PairOf(PeerId peer) const {
    int rank = 0;
    for (const auto& [to, open] : opens) rank = to == peer ? open.rank : rank;
    std::vector<PeerId> pair;
    for (const auto& [to, open] : opens) {
      if (open.rank == rank) pair.push_back(to);
    }
    return pair;
  }

  std::vector<std::pair<PeerId, wire::Open>> opens;
  std::vector<action::SendTask> sent;
  ContextId id = 0;
};

TEST_CASE("Two copies take pairs of workers, and need two") {
  const Replicated d(5);
  CHECK(d.opens.size() == 4);
  for (const auto& [peer, open] : d.opens) {
    CHECK(open.addresses.size() == 2);
    CHECK(open.copies.size() == 2);
    CHECK(d.PairOf(peer).size() == 2);
  }
  CHECK(d.State() == "ok");
}

TEST_CASE("Copies for which workers are missing are worth another try where more may be ready") {
  Driver one(1);
  const auto create = [&](Driver& driver) {
    Actions actions;
    const CallId call = driver.Begin(request::Create{TwoCopies()}, &actions);
    return FinishOf(actions, call);
  };
  const auto pass = [](Driver& driver, absl::Duration time, PeerId peer) {
    for (const absl::Time end = driver.now + time; driver.now < end;) {
      driver.now += absl::Milliseconds(100);
      driver.Beat(peer);
      driver.Handle(event::Tick{});
    }
  };
  // The coordinator has just begun.
  const absl::Status early = create(one);
  CHECK(absl::IsUnavailable(early));
  CHECK(early.message() ==
        "replicas: 2; expected at most 1, the workers that are ready; retry once more are");
  CHECK(RetryAfter(early) == absl::Seconds(1));
  // There never were two.
  pass(one, absl::Seconds(10), 11);
  const absl::Status late = create(one);
  CHECK(absl::IsFailedPrecondition(late));
  CHECK(late.message() == "replicas: 2; expected at most 1, the workers that are ready");
  // One of two may be back.
  Driver two(2);
  pass(two, absl::Seconds(11), 11);
  CHECK(two.core.Status(two.now).workers[1].state == "lost");
  CHECK(absl::IsUnavailable(create(two)));
  Driver none(0);
  CHECK(RetryAfter(create(none)) == absl::Seconds(1));
}

TEST_CASE("An append is acknowledged once both of each pair have it, and queries go to one") {
  Replicated d(4);
  const CallId call = d.StartAppend(0, 100);
  CHECK(d.sent.size() == 4);
  for (int i = 0; i < 3; ++i) {
    CHECK(absl::IsUnknown(FinishOf(d.Answer(d.sent[i].peer, call), call)));
    CHECK(d.Committed(d.id) == 0);
  }
  CHECK(FinishOf(d.Answer(d.sent[3].peer, call), call).ok());
  CHECK(d.Committed(d.id) == 100);
  Actions actions;
  const CallId attend = d.BeginAttend(d.id, 1, 100, &actions);
  const auto tasks = All<action::SendTask>(d.Handle(event::Prepared{attend, {0, 1}}));
  REQUIRE(tasks.size() == 2);
  CHECK(d.PairOf(tasks[0].peer) != d.PairOf(tasks[1].peer));
}

TEST_CASE("Whoever is lost, the context goes on with its copy and what was acknowledged") {
  const PeerId lost = GENERATE(11, 12, 13, 14);
  Replicated d(4);
  d.Append(0, 100);
  const CallId append = d.StartAppend(100, 10);
  Actions actions;
  const CallId attend = d.BeginAttend(d.id, 1, 100, &actions);
  d.Handle(event::Prepared{attend, {0, 1}});
  const uint64_t epoch_before = d.epoch;
  // Those of its pair have stored the append, or one of them has.
  for (const PeerId peer : d.PairOf(lost)) d.Answer(peer, append);
  actions = d.Lose(lost);
  CHECK(absl::IsUnavailable(FinishOf(actions, append)));
  CHECK(absl::IsUnavailable(FinishOf(actions, attend)));
  CHECK(SentTo<wire::Resume>(actions).size() == 3);
  CHECK(d.epoch > epoch_before);
  for (const action::Send& send : All<action::Send>(actions)) {
    if (const auto* resume = std::get_if<wire::Resume>(&send.body)) {
      CHECK(TokensOf(*resume) == std::vector<int64_t>{100, 0});
      CHECK(resume->addresses.size() == 2);
      CHECK(resume->copies.size() == 1);
    }
  }
  CHECK(d.State() == "degraded");
  CHECK(d.Committed(d.id) == 100);
  d.Append(100, 10);
  CHECK(d.sent.size() == 3);
  CHECK(d.Committed(d.id) == 110);
  // The other one of the pair was the last that had it.
  for (const PeerId peer : d.PairOf(lost)) {
    if (peer != lost) d.Lose(peer);
  }
  CHECK(d.State() == "lost");
  const CallId late = d.BeginAttend(d.id, 1, 100, &actions);
  CHECK(absl::IsDataLoss(FinishOf(actions, late)));
}

TEST_CASE("A step on a context that goes on with its copies is retried, not half done") {
  Replicated d(2);
  d.Append(0, 10);
  const request::Work step{{{d.id, 0, 10, 1, 1, {5, 1}}}};
  Actions actions;
  CallId call = d.Begin(step, &actions);
  CHECK(All<action::Admit>(actions).at(0).workers.size() == 2);
  d.Handle(event::Prepared{call, {0, 1}});
  actions = d.Lose(11);
  CHECK(absl::IsUnavailable(All<action::Finish>(actions).at(0).items.at(0).status));
  CHECK(d.Answer(12, call).empty());  // too late to count
  CHECK(d.Committed(d.id) == 10);
  call = d.Begin(step, &actions);
  CHECK(All<action::Admit>(actions).at(0).workers.size() == 1);
}

TEST_CASE("A context that is being created when a worker is lost never was") {
  Driver d(2);
  Actions actions;
  const CallId call = d.Begin(request::Create{TwoCopies()}, &actions);
  actions = d.Handle(event::PeerDown{11, kGone});
  CHECK(absl::IsUnavailable(FinishOf(actions, call)));
  CHECK(SentTo<wire::Release>(actions) == std::vector<PeerId>{12});
}

}  // namespace
}  // namespace annulus
