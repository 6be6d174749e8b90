// The coordinator of running workers is killed under load and started anew at the same endpoint:
// its contexts come back with all that was acknowledged.
#include <signal.h>

#include <memory>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "annulus/client.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/cli/callers.h"
#include "tests/cli/program.h"
#include "tests/cli/question.h"
#include "tests/reliability.h"

namespace annulus {
namespace {

using test::Program;
using test::Question;

constexpr int kWorkers = 3;
constexpr int kAnswersBefore = 300;  // the load before the fault
constexpr int kTokensBefore = 100;

TEST_CASE("a coordinator killed under load: the next one goes on with every context") {
  auto coordinator = std::make_unique<Program>(
      Arguments{"coordinator", "--listen", "127.0.0.1:0", "--log-level", "warning"});
  const std::string endpoint = coordinator->ReadLine().substr(6);
  std::vector<std::unique_ptr<Program>> workers;
  for (int i = 0; i < kWorkers; ++i) {
    workers.push_back(std::make_unique<Program>(
        Arguments{"worker", "--coordinator", endpoint, "--threads", "1"}));
  }
  // What is measured is the service, not the client's patience.
  ClientOptions options;
  options.endpoint = endpoint;
  options.retry.attempts_max = 1;
  const auto client = Client::Connect(options);
  REQUIRE(client.ok());
  const absl::Time begin = absl::Now();
  while ((*client)->Status()->workers.size() < kWorkers &&
         absl::Now() - begin < absl::Seconds(20)) {
    absl::SleepFor(absl::Milliseconds(20));
  }
  test::Callers callers(**client);
  REQUIRE(callers.uploaded());
  const test::Writer& writer = callers.writer();
  while ((callers.answers() < kAnswersBefore || writer.tokens < kTokensBefore) &&
         absl::Now() - begin < absl::Seconds(40)) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  const int before = callers.answers();
  const int64_t tokens_before = writer.tokens;

  const absl::Time killed = absl::Now();
  coordinator->Signal(SIGKILL);
  CHECK(coordinator->Wait().code == 128 + SIGKILL);
  coordinator = std::make_unique<Program>(
      Arguments{"coordinator", "--listen", endpoint, "--log-level", "warning"});
  REQUIRE(coordinator->ReadLine() == absl::StrCat("ready ", endpoint));
  const absl::Time started = absl::Now();
  const auto all_answer = [&] {
    return callers.AllAnswered(started) &&
           (writer.tokens > tokens_before + 1 || writer.tokens == Question::kTokens);
  };
  // The readers' connection may take longer to come back than the service.
  const auto fresh = Client::Connect(options);
  REQUIRE(fresh.ok());
  const auto all_back = [&] {
    for (const auto& reader : callers.readers()) {
      if (!(*fresh)->Describe(*reader->context).ok()) return false;
    }
    return (*fresh)->Describe(writer.context).ok();
  };
  while (!all_back() && absl::Now() - killed < absl::Seconds(15)) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  const absl::Duration rebuilt = absl::Now() - killed;
  while (!all_answer() && absl::Now() - killed < absl::Seconds(40)) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  const absl::Duration answered = absl::Now() - killed;
  absl::SleepFor(absl::Milliseconds(200));
  const test::Told told = callers.Stop();
  WARN(before << " answers and " << tokens_before << " appended tokens before the kill; all "
              << callers.readers().size() + 1 << " contexts are back "
              << absl::FormatDuration(rebuilt) << " after it, all callers' answers "
              << absl::FormatDuration(answered) << "; " << told.right << " right, " << told.wrong
              << " wrong, " << told.passing << " UNAVAILABLE, " << told.odd << " other errors");
  const bool kept = told.wrong == 0 && told.odd == 0 && all_answer();
  test::Tell({4, "kill -9 the coordinator",
              absl::StrCat(before, " answers and ", tokens_before, " appended tokens"),
              "contexts back <= 5 s, 0 lost",
              absl::StrCat("back ", absl::FormatDuration(rebuilt), ", all callers' answers ",
                           absl::FormatDuration(answered), ", ", told.wrong, " wrong of ",
                           told.right + told.wrong, kept ? ", 0 lost" : ", some lost"),
              kept && rebuilt < absl::Seconds(5)});
  CHECK(before >= kAnswersBefore);
  CHECK(tokens_before >= kTokensBefore);
  CHECK(rebuilt < absl::Seconds(5));
  CHECK(answered < absl::Seconds(5));
  CHECK(all_answer());
  CHECK(told.wrong == 0);
  CHECK(told.odd == 0);
  const auto info = (*client)->Describe(writer.context);
  REQUIRE(info.ok());
  CHECK(info->tokens[0] >= writer.tokens);
  CHECK(info->tokens[0] <= writer.tokens + 1);
  const int64_t rest = Question::kTokens - info->tokens[0];
  if (rest > 0) {
    AppendRequest append;
    append.context = writer.context;
    append.start = info->tokens[0];
    append.k = writer.question.k.view().Tokens(append.start, rest);
    append.v = writer.question.v.view().Tokens(append.start, rest);
    CHECK((*client)->Append(append).ok());
  }
  const auto last = (*client)->Attend(writer.question.Ask(writer.context));
  REQUIRE(last.ok());
  CHECK(writer.question.IsRight(*last));
  for (const auto& worker : workers) worker->Signal(SIGTERM);
  for (const auto& worker : workers) CHECK(worker->Wait().code == 0);
  coordinator->Signal(SIGTERM);
  CHECK(coordinator->Wait().code == 0);
}

TEST_CASE("a worker asked to end while its coordinator is away has its KV moved by the next one") {
  auto coordinator = std::make_unique<Program>(Arguments{"coordinator", "--listen", "127.0.0.1:0"});
  const std::string endpoint = coordinator->ReadLine().substr(6);
  Program worker({"worker", "--coordinator", endpoint, "--name", "first", "--threads", "1"});
  const auto client = Client::Connect({.endpoint = endpoint});
  REQUIRE(client.ok());
  REQUIRE(
      test::Within(absl::Seconds(20), [&] { return (*client)->Status()->workers.size() == 1; }));
  Rng rng(5);
  Question question(rng);
  const auto context = question.Upload(**client);
  REQUIRE(context.ok());

  coordinator->Signal(SIGKILL);
  coordinator->Wait();
  REQUIRE(test::Within(absl::Seconds(20),
                       [&] { return absl::StrContains(worker.err(), "coordinator gone"); }));
  worker.Signal(SIGTERM);
  REQUIRE(test::Within(absl::Seconds(20), [&] {
    return absl::StrContains(worker.err(), "asked to leave; waits for its coordinator");
  }));
  Program second({"worker", "--coordinator", endpoint, "--name", "second", "--threads", "1"});
  coordinator = std::make_unique<Program>(Arguments{"coordinator", "--listen", endpoint});
  REQUIRE(coordinator->ReadLine() == absl::StrCat("ready ", endpoint));
  CHECK(worker.Wait().code == 0);
  CHECK(absl::StrContains(worker.err(), "event=left"));
  CHECK(!absl::StrContains(worker.err(), "was not moved"));
  const auto answer = (*client)->Attend(question.Ask(*context));
  INFO(answer.status());
  CHECK((answer.ok() && question.IsRight(*answer)));
}

TEST_CASE("a worker without its coordinator ends at once if it holds nothing or is asked twice") {
  for (const bool holds : {false, true}) {
    CAPTURE(holds);
    Program coordinator({"coordinator", "--listen", "127.0.0.1:0"});
    const std::string endpoint = coordinator.ReadLine().substr(6);
    Program worker({"worker", "--coordinator", endpoint, "--threads", "1", "--drain-s", "100"});
    Rng rng(6);
    const Question question(rng);
    const auto client = Client::Connect({.endpoint = endpoint});
    REQUIRE(client.ok());
    REQUIRE(
        test::Within(absl::Seconds(20), [&] { return (*client)->Status()->workers.size() == 1; }));
    if (holds) REQUIRE(question.Upload(**client).ok());
    coordinator.Signal(SIGKILL);
    coordinator.Wait();
    REQUIRE(test::Within(absl::Seconds(20),
                         [&] { return absl::StrContains(worker.err(), "coordinator gone"); }));
    const absl::Time asked = absl::Now();
    worker.Signal(SIGTERM);
    if (holds) {
      REQUIRE(test::Within(absl::Seconds(20), [&] {
        return absl::StrContains(worker.err(), "waits for its coordinator, to have");
      }));
      worker.Signal(SIGTERM);
    }
    CHECK(worker.Wait().code == 0);
    CHECK(absl::Now() - asked < absl::Seconds(50));
    CHECK(absl::StrContains(worker.err(), "was not moved") == holds);
  }
}

}  // namespace
}  // namespace annulus
