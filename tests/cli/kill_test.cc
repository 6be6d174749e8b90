// A worker of a running cluster is killed, or stopped, while many callers wait for answers: each of
// them gets the right answer or an error, soon, and the survivors take new contexts.
#include <signal.h>

#include <atomic>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "annulus/client.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/cli/program.h"
#include "tests/cli/question.h"
#include "tests/reliability.h"

namespace annulus {
namespace {

using test::Question;

constexpr int kCallers = 4;
constexpr int kAnswersBefore = 500;  // the load before the fault

struct Tally {
  std::atomic<int> right{0};
  std::atomic<int> wrong{0};
  std::atomic<int> errors{0};
  std::atomic<int64_t> killed_ns{0};      // 0: not yet
  std::atomic<int64_t> last_error_ns{0};  // after the kill
};

// When the last call failed: after that nobody waits for the dead worker any more.
void NoteError(Tally& tally) {
  const int64_t killed_ns = tally.killed_ns;
  if (killed_ns == 0) return;
  const int64_t after_ns = absl::GetCurrentTimeNanos() - killed_ns;
  int64_t last = tally.last_error_ns;
  while (after_ns > last && !tally.last_error_ns.compare_exchange_weak(last, after_ns)) {
  }
}

// Attends until all callers together have `answers`, or are told to stop; after an error on a fresh
// context with other KV.
void Call(Client& client, int caller, int answers, const std::atomic<bool>& stop, Tally& tally) {
  Rng rng(static_cast<uint64_t>(caller) + 4);
  std::optional<Question> question(rng);
  absl::StatusOr<ContextId> context = question->Upload(client);
  for (int i = 0; !stop && tally.right + tally.wrong < answers && tally.errors < 100; ++i) {
    if (context.ok()) {
      AttendRequest request = question->Ask(*context);
      request.plan = (i + caller) % 2 == 0 ? PlanKind::kPassQ : PlanKind::kGroupCast;
      const absl::StatusOr<AttendResult> answer = client.Attend(request);
      if (answer.ok()) {
        ++(question->IsRight(*answer) ? tally.right : tally.wrong);
        continue;
      }
      NoteError(tally);
    }
    ++tally.errors;
    question.emplace(rng);
    context = question->Upload(client);
  }
}

// `up` with callers at work; they have had kAnswersBefore answers.
struct Load {
  explicit Load(int answers) : ready(nlohmann::json::parse(up.ReadLine())) {
    client = *Client::Connect({.endpoint = ready["endpoint"]});
    for (int c = 0; c < kCallers; ++c) {
      callers.emplace_back([this, c, answers] { Call(*client, c, answers, stop, tally); });
    }
    Await(kAnswersBefore);
    before = tally.right;
  }
  ~Load() {
    stop = true;
    Join();
  }

  void Await(int answers) const {
    while (tally.right + tally.wrong < answers && tally.errors < 100) {
      absl::SleepFor(absl::Milliseconds(1));
    }
  }
  void Join() {
    for (std::thread& caller : callers) caller.join();
    callers.clear();
  }
  // To worker `index`; returns when.
  absl::Time Hurt(int index, int signal) {
    const absl::Time now = absl::Now();
    tally.killed_ns = absl::ToUnixNanos(now);
    kill(ready["worker_pids"][index].get<pid_t>(), signal);
    return now;
  }
  int Lost() const {
    const ClusterStatus status = client->Status().value();
    int lost = 0;
    for (const WorkerStatus& worker : status.workers) lost += worker.state == "lost";
    return lost;
  }

  test::Program up{{"up", "--workers", "4", "--json"}};
  nlohmann::json ready;
  std::unique_ptr<Client> client;
  Tally tally;
  std::atomic<bool> stop = false;
  int before = 0;
  std::vector<std::thread> callers;
};

}  // namespace

TEST_CASE("a worker killed while nothing happens is noticed at once") {
  test::Program up({"up", "--workers", "2", "--json"});
  const nlohmann::json ready = nlohmann::json::parse(up.ReadLine());
  const auto client = Client::Connect({.endpoint = ready["endpoint"]});
  REQUIRE(client.ok());
  absl::SleepFor(absl::Milliseconds(500));
  const absl::Time killed = absl::Now();
  kill(ready["worker_pids"][0].get<pid_t>(), SIGKILL);
  bool lost = false;
  while (!lost && absl::Now() - killed < absl::Seconds(10)) {
    const ClusterStatus status = (*client)->Status().value();
    for (const WorkerStatus& worker : status.workers) lost |= worker.state == "lost";
  }
  const absl::Duration noticed = absl::Now() - killed;
  test::Tell({1, "kill -9 a worker, idle", "none", "noticed <= 0.5 s",
              absl::FormatDuration(noticed), noticed < absl::Milliseconds(500)});
  CHECK(noticed < absl::Milliseconds(500));
  up.Signal(SIGTERM);
  CHECK(up.Wait().code == 0);
}

TEST_CASE("a worker killed under load: right answers or errors at once, then the survivors serve") {
  constexpr int kAnswersInAll = 1000;
  Load load(kAnswersInAll);
  const absl::Time killed = load.Hurt(1, SIGKILL);

  // A new context is placed on the survivors and answers.
  Rng rng(99);
  const Question question(rng);
  absl::StatusOr<ContextId> fresh = absl::UnavailableError("not tried");
  while (absl::Now() - killed < absl::Seconds(10) && !fresh.ok()) {
    if (load.Lost() > 0) fresh = question.Upload(*load.client);
  }
  const absl::Duration served_again = absl::Now() - killed;
  load.Join();

  const Tally& tally = load.tally;
  const absl::Duration last_error = absl::Nanoseconds(tally.last_error_ns.load());
  INFO(load.before << " answers before the kill, " << tally.right << " right, " << tally.wrong
                   << " wrong, " << tally.errors << " errors in all; the last error "
                   << absl::FormatDuration(last_error) << " after the kill, a new context "
                   << absl::FormatDuration(served_again) << " after it");
  test::Tell({1, "kill -9 a worker under load",
              absl::StrCat(load.before, " answers, ", kCallers, " callers at once"),
              "last error <= 0.5 s, 0 wrong",
              absl::StrCat("last error ", absl::FormatDuration(last_error), ", ",
                           tally.wrong.load(), " wrong of ", tally.right + tally.wrong),
              tally.wrong == 0 && tally.errors > 0 && last_error < absl::Milliseconds(500)});
  CHECK(load.before >= kAnswersBefore);
  CHECK(tally.wrong == 0);
  CHECK(tally.right >= kAnswersInAll);
  CHECK(tally.errors > 0);
  CHECK(last_error < absl::Milliseconds(500));
  CHECK(fresh.ok());
  CHECK(served_again < absl::Seconds(2));
  load.up.Signal(SIGTERM);
  CHECK(load.up.Wait().code == 0);
}

TEST_CASE("a worker stopped under load is fenced, and nothing it says when it wakes counts") {
  constexpr int kAnswersAfter = 1000;  // after it wakes
  Load load(std::numeric_limits<int>::max());
  const absl::Time stopped = load.Hurt(1, SIGSTOP);
  while (load.Lost() == 0 && absl::Now() - stopped < absl::Seconds(10)) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  const absl::Duration fenced = absl::Now() - stopped;
  load.Await(load.tally.right + 500);
  const auto stop_s = static_cast<int64_t>(test::NumberFromEnvironment("ANNULUS_STOP_S", 0));
  absl::SleepFor(absl::Seconds(stop_s) - (absl::Now() - stopped));
  const int before_waking = load.tally.right;
  const absl::Duration stood = absl::Trunc(absl::Now() - stopped, absl::Milliseconds(1));
  kill(load.ready["worker_pids"][1].get<pid_t>(), SIGCONT);
  load.Await(before_waking + kAnswersAfter);
  load.stop = true;
  load.Join();
  const Tally& tally = load.tally;
  INFO(load.before << " answers before the stop, fenced " << absl::FormatDuration(fenced)
                   << " after it, " << tally.right - before_waking
                   << " right answers after waking, " << tally.wrong << " wrong, " << tally.errors
                   << " errors in all");
  CHECK(load.before >= kAnswersBefore);
  const int after = tally.right + tally.wrong - before_waking;
  test::Tell({2, absl::StrCat("SIGSTOP a worker for ", absl::FormatDuration(stood)),
              absl::StrCat(load.before, " answers, ", kCallers, " callers at once"),
              "fenced <= 1.5 s, 0 stale of 1000",
              absl::StrCat("fenced ", absl::FormatDuration(fenced), ", ", tally.wrong.load(),
                           " wrong of ", after, " after it woke"),
              fenced < absl::Milliseconds(1500) && tally.wrong == 0 && after >= kAnswersAfter});
  CHECK(fenced < absl::Milliseconds(1500));
  CHECK(tally.right - before_waking >= kAnswersAfter);
  CHECK(tally.wrong == 0);
  CHECK(absl::Nanoseconds(tally.last_error_ns.load()) < absl::Milliseconds(1500));
  // The worker has learnt that it was given up, and joined again under another id.
  const absl::Time patience = absl::Now() + absl::Seconds(5);
  while (load.Lost() > 0 && absl::Now() < patience) absl::SleepFor(absl::Milliseconds(20));
  CHECK(load.Lost() == 0);
  CHECK(load.client->Status()->workers.size() == 4);
  CHECK(!absl::StrContains(load.up.err(), "ended"));
  load.up.Signal(SIGTERM);
  CHECK(load.up.Wait().code == 0);
}

}  // namespace annulus
