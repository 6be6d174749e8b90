// A worker of a running cluster is killed while callers append to contexts of which two workers
// hold each page, and attend to them: nobody sees more of it than a slower answer.
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/rng.h"
#include "runtime/client/client.h"
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
void Call(Client& client, int caller, const std::atomic<bool>& stop, Tally& tally) {
  Rng rng(static_cast<uint64_t>(caller) + 70);
  while (!stop && tally.errors < 10) {
    const Question question(rng);
    const absl::StatusOr<ContextInfo> context = client.CreateContext(question.Spec(2));
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

}  // namespace

TEST_CASE("a worker killed under load, with two copies: answers go on and nothing is lost") {
  test::Program up({"up", "--workers", "4", "--json"});
  const nlohmann::json ready = nlohmann::json::parse(up.ReadLine());
  const auto client = Client::Connect({.endpoint = ready["endpoint"]});
  REQUIRE(client.ok());
  Tally tally;
  std::atomic<bool> stop = false;
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; ++c) {
    callers.emplace_back([&, c] { Call(**client, c, stop, tally); });
  }
  const auto await = [&](int answers) {
    const absl::Time give_up = absl::Now() + absl::Seconds(40);
    while (tally.right < answers && tally.errors < 10 && absl::Now() < give_up) {
      absl::SleepFor(absl::Milliseconds(1));
    }
  };
  await(kAnswersBefore);
  const int before = tally.right;
  kill(ready["worker_pids"][1].get<pid_t>(), SIGKILL);
  {
    const std::lock_guard<std::mutex> lock(tally.mutex);
    tally.latencies.clear();
  }
  await(before + kAnswersAfter);
  stop = true;
  for (std::thread& caller : callers) caller.join();
  REQUIRE(!tally.latencies.empty());
  std::sort(tally.latencies.begin(), tally.latencies.end());
  const absl::Duration p99 = tally.latencies[tally.latencies.size() * 99 / 100];
  INFO(before << " answers before the kill, " << tally.right << " right, " << tally.wrong
              << " wrong, " << tally.errors << " errors (" << tally.error << "), p99 after it "
              << absl::FormatDuration(p99));
  test::Tell(
      {5, "kill -9 a worker, two copies",
       absl::StrCat(before, " answers and ", tally.appends.load(), " appends, ", kCallers,
                    " callers at once"),
       "0 acknowledged tokens lost, p99 <= 2 s",
       absl::StrCat(tally.missing.load(), " contexts with tokens missing, ", tally.wrong.load(),
                    " wrong, ", tally.errors.load(), " errors, p99 ", absl::FormatDuration(p99)),
       tally.missing == 0 && tally.wrong == 0 && p99 <= absl::Seconds(2)});
  CHECK(before >= kAnswersBefore);
  CHECK(tally.right >= before + kAnswersAfter);
  CHECK(tally.wrong == 0);
  CHECK(tally.missing == 0);
  CHECK(tally.errors == 0);
  CHECK(p99 <= absl::Seconds(2));
  up.Signal(SIGTERM);
  CHECK(up.Wait().code == 0);
}

}  // namespace annulus
