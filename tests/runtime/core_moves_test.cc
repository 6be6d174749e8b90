// How a coordinator moves contexts, event by event.
#include <deque>
#include <map>
#include <numeric>
#include <vector>

#include "tests/catch.h"
#include "tests/runtime/core_driver.h"

namespace annulus {
namespace {

using test::All;
using test::Driver;
using test::FinishOf;
using test::SentTo;
using test::TokensOf;

const absl::Status kGone = absl::UnavailableError("gone");

// A cluster that does what moves ask for, as long as it may, and writes down what that was.
struct Movers : Driver {
  using Driver::Driver;

  // A context of 100 tokens on all workers, 4096 bytes on each.
  ContextId CreateHeld() {
    const ContextId id = Create(peers);
    Actions actions;
    const CallId call = BeginAppend(id, 0, 100, &actions);
    std::vector<event::Share> all;
    for (size_t i = 0; i < peers.size(); ++i) all.emplace_back(static_cast<int>(i));
    Handle(event::Prepared{call, all});
    for (const PeerId peer : peers) AskForWork(peer, call, epoch);
    Serve();
    CHECK(Committed(id) == 100);
    return id;
  }

  // Time goes on by so much, beat by beat, and everything that follows at once.
  void Pass(absl::Duration duration) {
    for (const absl::Time end = now + duration; now < end; Serve()) {
      now += absl::Milliseconds(50);
      for (const PeerId peer : peers) Take(Handle(event::Heard{peer, Beats(peer)}));
    }
  }
  void Serve() {
    while (!asked.empty() && may_answer) {
      const auto [peer, done] = asked.front();
      asked.pop_front();
      Take(Handle(event::Heard{peer, done}));
    }
  }
  void Take(const Actions& actions) {
    for (const Action& action : actions) {
      if (const auto* send = std::get_if<action::Send>(&action)) {
        if (const auto* open = std::get_if<wire::Open>(&send->body)) {
          opened.push_back(send->peer);
          Ask(send->peer, open->request, open->epoch);
        } else if (const auto* read = std::get_if<wire::Read>(&send->body)) {
          tokens_read += read->tokens;
          Ask(send->peer, read->request, read->epoch);
        } else if (const auto* resume = std::get_if<wire::Resume>(&send->body)) {
          if (resume->request != 0) Ask(send->peer, resume->request, resume->epoch);
          resumed = *resume;
        } else if (const auto* release = std::get_if<wire::Release>(&send->body)) {
          released.push_back(send->peer);
          if (release->request != 0) Ask(send->peer, release->request, release->epoch);
        } else if (const auto* seen = std::get_if<wire::HeartbeatSeen>(&send->body)) {
          if (seen->may_leave) may_leave.push_back(send->peer);
        }
      } else if (const auto* fill = std::get_if<action::MoveFill>(&action)) {
        AskForWork(fill->peer, fill->work.request, fill->work.items.at(0).epoch);
      } else if (const auto* end = std::get_if<action::MoveEnded>(&action)) {
        ended.push_back(end->status);
      }
    }
  }
  void Ask(PeerId peer, uint64_t request, uint64_t of_epoch) {
    asked.emplace_back(peer, wire::Done{request, of_epoch, absl::OkStatus(), 4096});
  }
  void AskForWork(PeerId peer, uint64_t request, uint64_t of_epoch) {
    asked.emplace_back(peer, wire::WorkDone{request, {{of_epoch, absl::OkStatus(), 4096}}});
  }
  wire::Heartbeat Beats(PeerId peer) const {
    return {.kv_bytes = peer == joined ? 0 : 4096, .leaves = peer == leaving};
  }
  std::string State(ContextId id) const { return core.Describe(id)->state; }
  void Lose(PeerId peer) {
    std::erase(peers, peer);
    std::erase_if(asked, [peer](const auto& entry) { return entry.first == peer; });
    Take(Handle(event::PeerDown{peer, kGone}));
    Serve();
  }
  absl::Status TryAppend(ContextId id, int64_t start) {
    Actions actions;
    const CallId call = BeginAppend(id, start, 10, &actions);
    return FinishOf(actions, call);
  }

  std::vector<PeerId> peers = {11, 12, 13};
  PeerId leaving = 0;
  PeerId joined = 0;  // and holds nothing
  bool may_answer = true;
  std::deque<std::pair<PeerId, wire::Body>> asked;
  std::vector<PeerId> opened, released, may_leave;
  std::vector<absl::Status> ended;
  wire::Resume resumed;
  int64_t tokens_read = 0;  // by all that were asked
};

TEST_CASE("A worker that wants to leave may once what it holds is elsewhere") {
  Movers d(3);
  const ContextId id = d.CreateHeld();
  d.leaving = 12;
  d.may_answer = false;
  d.Pass(absl::Milliseconds(200));
  CHECK(d.opened == std::vector<PeerId>{11, 13});
  CHECK(d.may_leave.empty());
  CHECK(d.State(id) == "moving");
  CHECK(d.core.moving());
  CHECK(d.TryAppend(id, 50).message() == "start: 50; expected 100, the layer's committed tokens");
  d.may_answer = true;
  d.Serve();
  REQUIRE(d.ended.size() == 1);
  CHECK(d.ended[0].ok());
  CHECK(d.tokens_read == 3 * 100);  // each of the three gives its part of the 100
  CHECK(d.released == std::vector<PeerId>{11, 12, 13});
  CHECK(d.resumed.context == id);
  CHECK(d.resumed.storage_id != id);
  CHECK(!d.resumed.activating);
  CHECK(TokensOf(d.resumed) == std::vector<int64_t>{100, 0});
  CHECK(d.State(id) == "ok");
  CHECK(d.Committed(id) == 100);
  d.Pass(absl::Milliseconds(50));
  CHECK(d.may_leave == std::vector<PeerId>{12});
  CHECK(d.ended.size() == 1);
  CHECK(!d.core.moving());
}

TEST_CASE("It is told who holds a context, and who answers for which part of it") {
  Movers d(3);
  const ContextId id = d.CreateHeld();
  const std::vector<ContextPlaces> places = d.core.Places(10);
  REQUIRE(places.size() == 1);
  CHECK(places[0].context == id);
  CHECK(places[0].kv_bytes == std::map<WorkerId, int64_t>{{1, 4096}, {2, 4096}, {3, 4096}});
  CHECK(places[0].parts == std::vector<WorkerId>{1, 1});  // its blocks
  CHECK(d.core.Places(0).empty());
  d.Lose(12);
  d.Lose(13);
  d.Lose(11);
  CHECK(d.core.Places(10).at(0).parts == std::vector<WorkerId>{0, 0});
}

TEST_CASE("Calls wait only while a context changes hands") {
  Movers d(3);
  const ContextId id = d.CreateHeld();
  d.leaving = 12;
  d.may_answer = false;
  d.Pass(absl::Milliseconds(200));
  // Opening, reading, filling: queries are answered by those that have always done so.
  for (int round = 0; round < 3; ++round) {
    Actions actions;
    const CallId call = d.BeginAttend(id, 1, 100, &actions);
    CHECK(All<action::Admit>(actions).size() == 1);
    d.Handle(event::GiveUp{call, kGone});
    const auto asked = std::exchange(d.asked, {});
    for (const auto& [peer, done] : asked) d.Take(d.Handle(event::Heard{peer, done}));
  }
  CHECK(d.resumed.activating);
  CHECK(TokensOf(d.resumed) == std::vector<int64_t>{100, 0});
  Actions actions;
  const CallId call = d.BeginAttend(id, 1, 100, &actions);
  CHECK(absl::IsUnavailable(FinishOf(actions, call)));
  CHECK(absl::IsUnavailable(d.TryAppend(id, 100)));
}

TEST_CASE("A context spreads over a worker that joins, and stays where it was if that is lost") {
  // Three open, two are read, three store, three are told that they are the context.
  const int answers = GENERATE(range(0, 12));
  Movers d(2);
  d.peers = {11, 12};
  const ContextId id = d.CreateHeld();
  wire::Hello hello;
  hello.name = "w3";
  hello.address = "addr3";
  d.now += absl::Seconds(10);  // workers of an earlier coordinator are not waited for any more
  d.Pass(absl::Seconds(3));    // nor those of this one, which stood still so long
  d.joined = 13;
  d.Handle(event::Heard{13, hello});
  d.peers.push_back(13);
  d.may_answer = false;
  d.Pass(absl::Milliseconds(200));
  CHECK(d.opened == std::vector<PeerId>{11, 12, 13});
  for (int i = 0; i < answers; ++i) {
    REQUIRE(!d.asked.empty());
    const auto [peer, done] = d.asked.front();
    d.asked.pop_front();
    d.Take(d.Handle(event::Heard{peer, done}));
  }
  CHECK(d.ended.empty());
  d.may_answer = true;
  d.Lose(13);
  REQUIRE(d.ended.size() == 1);
  if (answers == 11) {  // too late: it was spread
    CHECK(d.State(id) == "lost");
    return;
  }
  CHECK(absl::IsUnavailable(d.ended[0]));
  CHECK(d.State(id) == "ok");
  CHECK(d.Committed(id) == 100);
  CHECK(d.released == std::vector<PeerId>{11, 12});
  CHECK(absl::IsUnknown(d.TryAppend(id, 100)));  // it is taken up
}

TEST_CASE("A context that moves can be released, and then nothing of it is left") {
  Movers d(3);
  const ContextId id = d.CreateHeld();
  d.leaving = 12;
  d.may_answer = false;
  d.Pass(absl::Milliseconds(200));
  Actions actions;
  d.Begin(request::Release{id}, &actions);
  CHECK(SentTo<wire::Release>(actions) == std::vector<PeerId>{11, 12, 13, 11, 13});
  d.may_answer = true;
  d.Pass(absl::Milliseconds(50));
  CHECK(!d.core.Describe(id).ok());
  CHECK(d.may_leave == std::vector<PeerId>{12});
}

}  // namespace
}  // namespace annulus
