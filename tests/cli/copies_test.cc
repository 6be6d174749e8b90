// A worker of a running cluster is killed while callers append to contexts of which two workers
// hold each page, or is told to end: nobody sees more of it than a slower answer.
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

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
constexpr int kAnswersBefore = 500;
constexpr int kAnswersAfter = 500;
constexpr int64_t kPieceTokens = 20;  // appended at a time

struct Tally {
  std::atomic<int> right{0};
  std::atomic<int> wrong{0};
  std::atomic<int> errors{0};
  std::atomic<int> appends{0};
  std::atomic<int> missing{0};  // contexts that have fewer tokens than were acknowledged
  std::mutex mutex;
  std::vector<absl::Duration> latencies;
  std::string error;  // the first

  bool Check(const absl::Status& status) {
    if (status.ok()) return true;
    ++errors;
    const std::lock_guard<std::mutex> lock(mutex);
    if (error.empty()) error = status.ToString();
    return false;
  }
};

// Uploads a context piece by piece, asking whenever it is whole, until told to stop.
void Call(Client& client, int caller, int replicas, const std::atomic<bool>& stop, Tally& tally) {
  Rng rng(static_cast<uint64_t>(caller) + 70);
  while (!stop && tally.errors < 10) {
    const Question question(rng);
    const absl::StatusOr<ContextInfo> context = client.CreateContext(Question::Spec(replicas));
    if (!tally.Check(context.status())) continue;
    bool whole = true;
    for (int64_t start = 0; whole && !stop && start < Question::kTokens; start += kPieceTokens) {
      whole = tally.Check(question.Append(client, context->id, start, kPieceTokens));
      tally.appends += whole;
    }
    for (int i = 0; whole && !stop && i < 20; ++i) {
      const absl::Time begin = absl::Now();
      const absl::StatusOr<AttendResult> answer = client.Attend(question.Ask(context->id));
      const absl::Duration latency = absl::Now() - begin;
      if (!tally.Check(answer.status())) break;
      ++(question.IsRight(*answer) ? tally.right : tally.wrong);
      const std::lock_guard<std::mutex> lock(tally.mutex);
      tally.latencies.push_back(latency);
    }
    const absl::StatusOr<ContextInfo> now = client.Describe(context->id);
    if (!stop && whole && tally.Check(now.status())) {
      tally.missing += now->tokens[0] != Question::kTokens;
    }
    (void)client.Release(context->id);
  }
}

// A service of worker processes under the load of some callers, and one context that stays.
struct Loaded {
  // replicas: those of the callers' contexts, of one caller after the other.
  Loaded(const char* workers, std::vector<int> replicas, int staying_replicas)
      : up({"up", "--workers", workers, "--json"}),
        ready(nlohmann::json::parse(up.ReadLine())),
        client(Client::Connect({.endpoint = ready["endpoint"]}).value()) {
    Rng rng(7);
    question.emplace(rng);
    staying = question->Upload(*client, staying_replicas).value();
    for (int c = 0; c < kCallers; ++c) {
      const int copies = replicas[static_cast<size_t>(c) % replicas.size()];
      callers.emplace_back([this, c, copies] { Call(*client, c, copies, stop, tally); });
    }
    Await(kAnswersBefore);
    before = tally.right;
  }
  ~Loaded() { Stop(); }

  void Await(int answers) {
    const absl::Time give_up = absl::Now() + absl::Seconds(40);
    while (tally.right < answers && tally.errors < 10 && absl::Now() < give_up) {
      absl::SleepFor(absl::Milliseconds(1));
    }
  }
  // Until `happened`, infinite if it does not; from `begin` on.
  template <typename F>
  absl::Duration TimeUntil(absl::Time begin, F happened) {
    while (!happened()) {
      if (absl::Now() - begin > absl::Seconds(20)) return absl::InfiniteDuration();
      absl::SleepFor(absl::Milliseconds(10));
    }
    return absl::Now() - begin;
  }
  void Stop() {
    stop = true;
    for (std::thread& caller : callers) caller.join();
    callers.clear();
  }
  std::string LoadBefore() const {
    return absl::StrCat(before, " answers and ", appends_before, " appends, ", kCallers,
                        " callers at once");
  }
  void CheckAll() {
    const absl::StatusOr<AttendResult> answer = client->Attend(question->Ask(staying));
    INFO(before << " answers before, " << tally.right << " right, " << tally.wrong << " wrong, "
                << tally.errors << " errors (" << tally.error << ")");
    CHECK(before >= kAnswersBefore);
    CHECK(tally.right >= before + kAnswersAfter);
    CHECK(tally.wrong == 0);
    CHECK(tally.missing == 0);
    CHECK(tally.errors == 0);
    CHECK(answer.ok());
    if (answer.ok()) CHECK(question->IsRight(*answer));
    up.Signal(SIGTERM);
    CHECK(up.Wait().code == 0);
  }

  test::Program up;
  const nlohmann::json ready;
  const std::unique_ptr<Client> client;
  std::optional<Question> question;
  ContextId staying = 0;
  Tally tally;
  std::atomic<bool> stop = false;
  std::vector<std::thread> callers;
  int before = 0;
  int appends_before = 0;
};

}  // namespace

TEST_CASE("a worker killed under load, with two copies: answers go on and nothing is lost") {
  Loaded load("4", {2}, 2);
  load.appends_before = load.tally.appends;
  const absl::Time killed = absl::Now();
  kill(load.ready["worker_pids"][1].get<pid_t>(), SIGKILL);
  {
    const std::lock_guard<std::mutex> lock(load.tally.mutex);
    load.tally.latencies.clear();
  }
  const auto state = [&] { return load.client->Describe(load.staying).value().state; };
  const absl::Duration noticed = load.TimeUntil(killed, [&] { return state() != "ok"; });
  const absl::Duration restored = load.TimeUntil(killed, [&] { return state() == "ok"; });
  load.Await(load.before + kAnswersAfter);
  load.Stop();
  Tally& tally = load.tally;
  REQUIRE(!tally.latencies.empty());
  std::sort(tally.latencies.begin(), tally.latencies.end());
  const absl::Duration p99 = tally.latencies[tally.latencies.size() * 99 / 100];
  test::Tell(
      {5, "kill -9 a worker, two copies", load.LoadBefore(),
       "0 acknowledged tokens lost, p99 <= 2 s, redundancy restored",
       absl::StrCat(tally.missing.load(), " contexts with tokens missing, ", tally.wrong.load(),
                    " wrong, ", tally.errors.load(), " errors, p99 ", absl::FormatDuration(p99),
                    "; two copies again after ", absl::FormatDuration(restored)),
       tally.missing == 0 && tally.wrong == 0 && p99 <= absl::Seconds(2) &&
           restored < absl::InfiniteDuration()});
  CHECK(noticed < absl::InfiniteDuration());
  CHECK(restored < absl::InfiniteDuration());
  CHECK(p99 <= absl::Seconds(2));
  load.CheckAll();
}

TEST_CASE("a worker told to end under load: what it holds moves, no caller sees an error") {
  Loaded load("3", {1, 2}, 1);
  load.appends_before = load.tally.appends;
  const absl::Time told = absl::Now();
  kill(load.ready["worker_pids"][1].get<pid_t>(), SIGTERM);
  const absl::Duration left = load.TimeUntil(told, [&] {
    const ClusterStatus status = load.client->Status().value();
    return std::any_of(status.workers.begin(), status.workers.end(),
                       [](const WorkerStatus& worker) { return worker.state == "left"; });
  });
  load.Await(load.before + kAnswersAfter);
  load.Stop();
  test::Tell({5, "SIGTERM to a worker, one copy", load.LoadBefore(),
              "what it holds is moved first: no error, nothing lost",
              absl::StrCat(load.tally.missing.load(), " contexts with tokens missing, ",
                           load.tally.wrong.load(), " wrong, ", load.tally.errors.load(),
                           " errors; gone after ", absl::FormatDuration(left)),
              load.tally.errors == 0 && load.tally.missing == 0 && load.tally.wrong == 0});
  CHECK(left < absl::InfiniteDuration());
  load.CheckAll();
}

}  // namespace annulus
