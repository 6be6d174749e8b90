// The coordinator of a running cluster stands still under load, for less and for longer than
// workers wait for a sign of it: every context goes on afterwards, with all that was acknowledged.
//
// ANNULUS_PAUSE_S=N stops it for N s instead.
#include <signal.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/catch.h"
#include "tests/cli/callers.h"
#include "tests/cli/program.h"
#include "tests/reliability.h"

namespace annulus {
namespace {

using test::Question;
using test::Reader;
using test::Writer;

constexpr int kReaders = 3;
constexpr int kAnswersBefore = 200;  // the load before the fault
constexpr int kTokensBefore = 50;
constexpr absl::Duration kPatience = absl::Seconds(40);

std::vector<absl::Duration> Pauses() {
  const uint64_t pause_s = test::NumberFromEnvironment("ANNULUS_PAUSE_S", 0);
  if (pause_s != 0) return {absl::Seconds(static_cast<int64_t>(pause_s))};
  return {absl::Milliseconds(500), absl::Milliseconds(1600)};
}

template <typename Condition>
bool Within(absl::Duration patience, Condition condition) {
  const absl::Time end = absl::Now() + patience;
  while (!condition() && absl::Now() < end) absl::SleepFor(absl::Milliseconds(2));
  return condition();
}

TEST_CASE("a coordinator stopped under load: nothing is lost, whatever its workers make of it") {
  for (const absl::Duration pause : Pauses()) {
    CAPTURE(absl::FormatDuration(pause));
    test::Program up({"up", "--workers", "3", "--threads", "1", "--json"});
    const nlohmann::json ready = nlohmann::json::parse(up.ReadLine());
    // What is measured is the service, not the client's patience.
    ClientOptions options;
    options.endpoint = ready["endpoint"];
    options.retry.attempts_max = 1;
    const auto client = Client::Connect(options);
    REQUIRE(client.ok());
    std::atomic<bool> stop = false;
    std::vector<std::unique_ptr<Reader>> readers;
    for (int i = 0; i < kReaders; ++i) {
      readers.push_back(std::make_unique<Reader>(**client, 20 + i, stop));
      REQUIRE(readers.back()->context.ok());
    }
    Writer writer(**client, stop);
    const auto answers = [&] {
      int right = 0;
      for (const auto& reader : readers) right += reader->right;
      return right;
    };
    Within(kPatience,
           [&] { return answers() >= kAnswersBefore && writer.tokens >= kTokensBefore; });
    const int before = answers();
    const int64_t tokens_before = writer.tokens;

    const auto coordinator = ready["coordinator_pid"].get<pid_t>();
    REQUIRE(kill(coordinator, SIGSTOP) == 0);
    absl::SleepFor(pause);
    const absl::Time woken = absl::Now();
    kill(coordinator, SIGCONT);
    const bool all_answer = Within(kPatience, [&] {
      for (const auto& reader : readers) {
        if (reader->last_right <= absl::ToUnixNanos(woken)) return false;
      }
      return writer.tokens > tokens_before + 1;
    });
    const absl::Duration answered = absl::Now() - woken;
    // What is still on its way from before comes to nothing.
    absl::SleepFor(absl::Seconds(2));
    stop = true;
    if (writer.thread.joinable()) writer.thread.join();
    int right = 0, wrong = 0, passing = 0, odd = writer.odd, lost = 0;
    for (const auto& reader : readers) {
      reader->thread.join();
      right += reader->right;
      wrong += reader->wrong;
      passing += reader->passing;
      odd += reader->odd;
      const auto info = (*client)->Describe(*reader->context);
      lost += !info.ok() || info->state != "ok";
    }
    const auto info = (*client)->Describe(writer.context);
    lost += !info.ok() || info->state != "ok" || info->tokens[0] < writer.tokens ||
            info->tokens[0] > writer.tokens + 1;
    test::Tell(
        {16, absl::StrCat("SIGSTOP the coordinator for ", absl::FormatDuration(pause)),
         absl::StrCat(before, " answers and ", tokens_before, " appended tokens"),
         "0 contexts lost, 0 wrong",
         absl::StrCat(lost, " lost, ", wrong, " wrong of ", right + wrong,
                      ", all callers' answers ", absl::FormatDuration(answered), " after it"),
         lost == 0 && wrong == 0 && odd == 0 && all_answer});
    INFO(up.err());
    CHECK(before >= kAnswersBefore);
    CHECK(tokens_before >= kTokensBefore);
    CHECK(all_answer);
    CHECK(lost == 0);
    CHECK(wrong == 0);
    CHECK(odd == 0);
    int ready_workers = 0;
    const ClusterStatus status = (*client)->Status().value();
    for (const WorkerStatus& worker : status.workers) {
      ready_workers += worker.state == "ready";
    }
    CHECK(ready_workers == 3);
    CHECK(!absl::StrContains(up.err(), "ended"));  // no process did
    up.Signal(SIGTERM);
    CHECK(up.Wait().code == 0);
  }
}

}  // namespace
}  // namespace annulus
