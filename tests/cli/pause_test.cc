// The coordinator of a running cluster stands still under load, for less and for longer than
// workers wait for a sign of it: every context goes on afterwards, with all that was acknowledged.
//
// ANNULUS_PAUSE_S=N stops it for N s instead.
#include <signal.h>

#include <atomic>
#include <cmath>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/catch.h"
#include "tests/cli/callers.h"
#include "tests/cli/program.h"
#include "tests/reliability.h"

namespace annulus {
namespace {

constexpr int kAnswersBefore = 200;  // the load before the fault
constexpr int kTokensBefore = 50;
constexpr absl::Duration kPatience = absl::Seconds(40);

constexpr absl::Duration kLookPeriod = absl::Milliseconds(2);  // how exact times are

std::vector<absl::Duration> Pauses() {
  const uint64_t pause_s = test::NumberFromEnvironment("ANNULUS_PAUSE_S", 0);
  if (pause_s != 0) return {absl::Seconds(static_cast<int64_t>(pause_s))};
  return {absl::Milliseconds(500), absl::Milliseconds(1600)};
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
    test::Callers callers(**client);
    REQUIRE(callers.uploaded());
    const test::Writer& writer = callers.writer();
    test::Within(
        kPatience,
        [&] { return callers.answers() >= kAnswersBefore && writer.tokens >= kTokensBefore; },
        kLookPeriod);
    const int before = callers.answers();
    const int64_t tokens_before = writer.tokens;

    const auto coordinator = ready["coordinator_pid"].get<pid_t>();
    REQUIRE(kill(coordinator, SIGSTOP) == 0);
    absl::SleepFor(pause);
    const absl::Time woken = absl::Now();
    kill(coordinator, SIGCONT);
    const bool all_answer = test::Within(
        kPatience, [&] { return callers.AllAnswered(woken) && writer.tokens > tokens_before + 1; },
        kLookPeriod);
    const absl::Duration answered = absl::Now() - woken;
    // What is still on its way from before comes to nothing.
    absl::SleepFor(absl::Seconds(2));
    const test::Told told = callers.Stop();
    int lost = 0;
    for (const auto& reader : callers.readers()) {
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
         absl::StrCat(lost, " lost, ", told.wrong, " wrong of ", told.right + told.wrong,
                      ", all callers' answers ", absl::FormatDuration(answered), " after it"),
         lost == 0 && told.wrong == 0 && told.odd == 0 && all_answer});
    INFO(up.err());
    CHECK(before >= kAnswersBefore);
    CHECK(tokens_before >= kTokensBefore);
    CHECK(all_answer);
    CHECK(lost == 0);
    CHECK(told.wrong == 0);
    CHECK(told.odd == 0);
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

// More than a link's queue holds at most (UcxOptions::queue_bytes_max): a worker that could not
// send an answer would leave, with all its KV.
TEST_CASE("answers of 350 MB wait for a coordinator that does not take them") {
  test::Program up({"up", "--workers", "1", "--threads", "2", "--json"});
  const nlohmann::json ready = nlohmann::json::parse(up.ReadLine());
  ClientOptions options;
  options.endpoint = ready["endpoint"];
  options.upload = Upload::kRelay;
  options.retry.attempts_max = 1;
  const auto client = Client::Connect(options).value();
  ContextSpec spec;
  spec.heads = 32;
  spec.kv_heads = 1;
  spec.head_dim = 8;
  spec.v_head_dim = 128;
  spec.dtype = DType::kF32;
  const ContextId id = client->CreateContext(spec).value().id;
  const std::vector<float> values(4300 * 32 * 8, 1.0f);
  AppendRequest append;
  append.context = id;
  append.k = TensorView::Contiguous(values.data(), DType::kF32, 64, 1, 8);
  append.v = TensorView::Contiguous(values.data(), DType::kF32, 64, 1, 128);
  REQUIRE(client->Append(append).ok());
  AttendRequest attend;
  attend.context = id;
  attend.pattern = "full";
  attend.kv_len = 64;
  attend.q = TensorView::Contiguous(values.data(), DType::kF32, 4300, 32, 8);
  std::atomic<int> right = 0;
  std::mutex mutex;
  absl::Status status;
  std::vector<std::thread> callers;
  for (int i = 0; i < 5; ++i) {
    callers.emplace_back([&] {
      const auto answer = client->Attend(attend);
      right += answer.ok() && std::abs(answer->out.f32()[0] - 1) < 1e-5f ? 1 : 0;
      const std::lock_guard<std::mutex> lock(mutex);
      status.Update(answer.status());
    });
  }
  CHECK(test::Within(
      kPatience, [&] { return client->Status().value().in_flight >= 5; }, kLookPeriod));
  const auto coordinator = ready["coordinator_pid"].get<pid_t>();
  REQUIRE(kill(coordinator, SIGSTOP) == 0);
  absl::SleepFor(absl::Milliseconds(600));  // workers wait for longer
  kill(coordinator, SIGCONT);
  for (std::thread& caller : callers) caller.join();
  INFO(status);
  CHECK(right == 5);
  CHECK(client->Describe(id).value().state == "ok");
}

}  // namespace
}  // namespace annulus
