// Workers that are cut off from their coordinator and join again, event by event.
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
using test::TokensOf;

// Workers 1… at peers 11…, one context with 100 tokens in its first layer.
struct CutOff : test::Driver {
  explicit CutOff(int workers, int replicas = 1) : Driver(workers) {
    request::Create create{SmallSpec()};
    create.spec.replicas = replicas;
    Actions actions;
    CallId call = Begin(create, &actions);
    for (const action::Send& send : All<action::Send>(actions)) {
      const auto& open = std::get<wire::Open>(send.body);
      epoch = open.epoch;
      rank_of[send.peer] = open.rank;
      held = {open.epoch, open.storage_id, open.spec,   0, open.addresses, {},
              0,          open.copies,     open.context};
    }
    for (const auto& [peer, rank] : rank_of) actions = Answer(peer, call);
    id = All<action::Finish>(actions).at(0).context;
    call = BeginAppend(id, 0, 100, &actions);
    std::vector<event::Share> all;
    for (int i = 0; i < workers / replicas * replicas; ++i) all.emplace_back(i);
    Handle(event::Prepared{call, all});
    for (const auto& [peer, rank] : rank_of) actions = Answer(peer, call);
    CHECK(FinishOf(actions, call).ok());
    held.layers = {{100, 0, {1, {}}, {0, 100}}, {}};
  }

  // Nothing comes from anybody for so long; then time goes on as usual.
  void StandStill(absl::Duration length) {
    now += length;
    Handle(event::Tick{});
  }
  Actions Lose(PeerId peer) {
    return Handle(event::PeerDown{peer, absl::UnavailableError("reset")});
  }
  // The worker that was at `before`, with what it held when the context was made.
  Actions Rejoin(PeerId before, PeerId peer, int64_t tokens = 100) {
    wire::Hello hello;
    hello.address = absl::StrCat("addr", before - 10);
    hello.coordinator = 1;
    hello.contexts = 1;
    CHECK(SentTo<wire::Welcome>(Handle(event::Heard{peer, hello})).size() == 1);
    wire::Inventory inventory = held;
    inventory.rank = rank_of.at(before);
    inventory.layers[0].tokens = tokens;
    return Handle(event::Heard{peer, inventory});
  }
  std::string State() const { return core.Describe(id)->state; }
  absl::Status TryAttend() {
    Actions actions;
    const CallId call = BeginAttend(id, 1, 100, &actions);
    if (!All<action::Admit>(actions).empty()) {
      Handle(event::GiveUp{call, absl::CancelledError("enough")});
      return absl::OkStatus();
    }
    return FinishOf(actions, call);
  }

  ContextId id = 0;
  std::map<PeerId, int> rank_of;
  wire::Inventory held;
};

TEST_CASE("After a stand-still contexts wait for the workers that cut themselves off") {
  CutOff d(3);
  d.StandStill(absl::Milliseconds(1600));
  for (const PeerId peer : {11, 12, 13}) d.Lose(peer);
  CHECK(d.State() == "recovering");
  CHECK(absl::IsUnavailable(d.TryAttend()));
  CHECK(d.TryAttend().message() == "context 1 waits for 3 of its 3 workers to join again; retry");
  CHECK(SentTo<wire::Resume>(d.Rejoin(12, 22)).empty());
  CHECK(SentTo<wire::Resume>(d.Rejoin(13, 23)).empty());
  CHECK(d.TryAttend().message() == "context 1 waits for 1 of its 3 workers to join again; retry");
  // It has stored what was never acknowledged, too.
  const Actions actions = d.Rejoin(11, 21, 140);
  CHECK(SentTo<wire::Resume>(actions).size() == 3);
  const auto resume = std::get<wire::Resume>(All<action::Send>(actions).at(0).body);
  CHECK(resume.epoch > d.epoch);
  CHECK(TokensOf(resume) == std::vector<int64_t>{100, 0});
  CHECK(d.State() == "ok");
  CHECK(d.TryAttend().ok());
  const ClusterStatus status = d.core.Status(d.now);
  CHECK(status.workers.size() == 3);  // each under its new id
  for (const WorkerStatus& worker : status.workers) CHECK(worker.state == "ready");
}

TEST_CASE("A context that nobody comes back for is lost in the end, and comes back later") {
  CutOff d(2);
  d.StandStill(absl::Seconds(2));
  d.Lose(11);
  for (int i = 0; i < 24; ++i) {
    d.now += absl::Milliseconds(450);
    d.Beat(12);
    d.Handle(event::Tick{});
  }
  CHECK(d.State() == "lost");
  CHECK(absl::IsDataLoss(d.TryAttend()));
  CHECK(SentTo<wire::Resume>(d.Rejoin(11, 21)).size() == 2);
  CHECK(d.State() == "ok");
  CHECK(d.TryAttend().ok());
}

TEST_CASE("A worker that was lost without a stand-still brings its contexts back") {
  CutOff d(2);
  d.Lose(11);
  CHECK(absl::IsDataLoss(d.TryAttend()));
  // With less than was acknowledged it is not what it says.
  CHECK(SentTo<wire::Release>(d.Rejoin(11, 21, 99)) == std::vector<PeerId>{21});
  CHECK(absl::IsDataLoss(d.TryAttend()));
  CHECK(SentTo<wire::Resume>(d.Rejoin(11, 31)).size() == 2);
  CHECK(d.TryAttend().ok());
}

TEST_CASE("A worker that joins again before its old link ends is one worker") {
  CutOff d(2);
  CHECK(SentTo<wire::Resume>(d.Rejoin(11, 21)).size() == 2);
  CHECK(d.TryAttend().ok());
  CHECK(d.core.Status(d.now).workers.size() == 2);
  CHECK(d.Lose(11).empty());  // nobody any more
  CHECK(d.TryAttend().ok());
}

TEST_CASE("A copy that was gone on without is stale, and one that was waited for is not") {
  const bool stood_still = GENERATE(false, true);
  CutOff d(2, /*replicas=*/2);
  if (stood_still) d.StandStill(absl::Milliseconds(1600));
  const Actions lost = d.Lose(11);
  CHECK(SentTo<wire::Resume>(lost).size() == (stood_still ? 0 : 1));
  CHECK(d.State() == (stood_still ? "recovering" : "degraded"));
  const Actions actions = d.Rejoin(11, 21);
  CHECK(SentTo<wire::Release>(actions).size() == (stood_still ? 0 : 1));
  CHECK(SentTo<wire::Resume>(actions).size() == (stood_still ? 2 : 0));
  if (stood_still) CHECK(d.State() == "ok");
}

TEST_CASE("With copies a context waits a moment only, and goes on without who is late") {
  CutOff d(2, /*replicas=*/2);
  d.StandStill(absl::Milliseconds(1600));
  d.Lose(11);
  CHECK(absl::IsUnavailable(d.TryAttend()));
  for (int i = 0; i < 5; ++i) {
    d.now += absl::Milliseconds(240);
    d.Beat(12);
    d.Handle(event::Tick{});
  }
  CHECK(d.State() == "degraded");
  CHECK(d.TryAttend().ok());
  CHECK(SentTo<wire::Release>(d.Rejoin(11, 21)) == std::vector<PeerId>{21});
}

TEST_CASE("What was released or made anew meanwhile does not come back") {
  CutOff d(2);
  d.Lose(11);
  Actions actions;
  d.Begin(request::Release{d.id}, &actions);
  CHECK(SentTo<wire::Release>(d.Rejoin(11, 21)) == std::vector<PeerId>{21});
  CHECK(absl::IsNotFound(d.TryAttend()));
}

}  // namespace
}  // namespace annulus
