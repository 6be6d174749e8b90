// What coordinator and worker tell to Prometheus after known calls, and `annulus status` beside it.
#include <signal.h>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/client.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/cli/program.h"
#include "tests/cli/question.h"
#include "tests/rpc/scrape.h"

namespace annulus {
namespace {

using test::Program;
using test::Question;
using test::ValueOf;

constexpr int kAttends = 7;

std::string Bytes(const char* transport, const char* direction) {
  return absl::StrCat("annulus_transport_bytes_total{transport=\"", transport, "\",direction=\"",
                      direction, "\"}");
}

TEST_CASE("coordinator and worker tell what calls did, in base units") {
  Program coordinator({"coordinator", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
                       "--log-level", "debug"});
  const std::string endpoint = coordinator.ReadLine().substr(6);
  Program worker({"worker", "--coordinator", endpoint, "--threads", "1", "--http-listen",
                  "127.0.0.1:0", "--kv-bytes-limit", "64M"});
  const auto client = Client::Connect({.endpoint = endpoint});
  REQUIRE(client.ok());
  Rng rng(5);
  const Question question(rng);
  const absl::Time begin = absl::Now();
  const absl::StatusOr<ContextId> context = question.UploadWhenReady(**client);
  REQUIRE(context.ok());
  for (int i = 0; i < kAttends; ++i) {
    AttendRequest request = question.Ask(*context);
    request.request_id = absl::StrCat("question-", i);
    REQUIRE((*client)->Attend(request).ok());
  }
  const double kv_bytes = Question::kKvHeads * 16 * 64 * Question::kDim * 2 * 4.0;  // 16 blocks

  const std::string of_worker = test::Scrape(worker.HttpPort());
  CHECK(ValueOf(of_worker, "annulus_attends_total") == kAttends);
  CHECK(ValueOf(of_worker, "annulus_appends_total") >= 1);
  CHECK(ValueOf(of_worker, "annulus_tasks_total") >= kAttends + 2);
  CHECK(ValueOf(of_worker, "annulus_kv_bytes") == kv_bytes);
  CHECK(ValueOf(of_worker, "annulus_kv_bytes_limit") == 64 << 20);
  CHECK(ValueOf(of_worker, "annulus_kv_evicted_bytes_total") == 0);
  const double kernel_s = ValueOf(of_worker, "annulus_kernel_seconds_total");
  CHECK(kernel_s > 0);
  CHECK(kernel_s < absl::ToDoubleSeconds(absl::Now() - begin));
  CHECK(ValueOf(of_worker, "annulus_queue_wait_seconds_count{queue=\"tasks\"}") ==
        ValueOf(of_worker, "annulus_tasks_total"));
  const double uploaded = Question::kTokens * Question::kKvHeads * Question::kDim * 2 * 4.0;
  CHECK(ValueOf(of_worker, Bytes("grpc", "received")) == uploaded);
  CHECK(ValueOf(of_worker, Bytes("ucx", "received")) > 0);

  const std::string text = test::Scrape(coordinator.HttpPort());
  const auto count = static_cast<double>(kAttends);
  CHECK(ValueOf(text, "annulus_requests_total{call=\"Attend\",code=\"OK\"}") == count);
  CHECK(ValueOf(text, "annulus_request_seconds_count{call=\"Attend\",code=\"OK\"}") == count);
  CHECK(ValueOf(text, "annulus_kv_bytes_limit") == 64 << 20);
  CHECK(ValueOf(text, "annulus_blocks{state=\"ok\"}") == 16 * Question::kKvHeads);
  CHECK(ValueOf(text, "annulus_calls_in_flight") == 0);
  CHECK(ValueOf(text, "annulus_calls_waiting") == 0);
  CHECK(ValueOf(text, "annulus_queue_wait_seconds_count{queue=\"calls\"}") >= count);
  CHECK(ValueOf(text, "annulus_workers_joined_total") == 1);
  CHECK(ValueOf(text, "annulus_workers_lost_total") == 0);
  const double start_s = ValueOf(text, "process_start_time_seconds");
  CHECK(std::abs(start_s - absl::ToDoubleSeconds(begin - absl::UnixEpoch())) < 60);
  CHECK(ValueOf(text, "process_resident_memory_bytes") > 1 << 20);
  CHECK(ValueOf(text, "process_open_fds") > 3);
  CHECK(ValueOf(text, "annulus_heartbeat_age_seconds{worker=\"1\"}") < 1);
  const double q_bytes = Question::kHeads * Question::kDim * 4.0;
  CHECK(ValueOf(text, Bytes("grpc", "received")) == kAttends * q_bytes);
  CHECK(ValueOf(text, Bytes("grpc", "sent")) == kAttends * (q_bytes + Question::kHeads * 4));
  CHECK(ValueOf(text, Bytes("ucx", "sent")) > 0);
  for (int i = 0; i < kAttends; ++i) {
    CHECK(absl::StrContains(coordinator.err(), absl::StrCat("request=question-", i, " ")));
  }

  // The same once more for people and scripts, over and over until told to stop.
  Program watch({"status", "--endpoint", endpoint, "--watch", "1", "--json"});
  for (int i = 0; i < 2; ++i) {
    const auto status = nlohmann::json::parse(watch.ReadLine());
    CHECK(status["in_flight"] == 0);
    CHECK(status["workers"][0]["heartbeat_age_s"] < 1.0);
    CHECK(status["context_list"][0]["tokens"] == Question::kTokens);
    CHECK(status["context_list"][0]["dense_kv_bytes"] == kv_bytes);
  }
  watch.Signal(SIGTERM);
  CHECK(watch.Wait().code == 0);
  const test::Outcome unread =
      test::RunProgramTo("/dev/full", {"status", "--endpoint", endpoint, "--watch", "1"});
  CHECK(unread.code == 1);
  CHECK(absl::StrContains(unread.err, "stdout"));
  const test::Outcome table = test::RunProgram({"status", "--endpoint", endpoint});
  CHECK(absl::StrContains(table.out, "heartbeat"));
  CHECK(absl::StrContains(table.out, "100.0%"));
}

TEST_CASE("status waits for workers, and for the coordinator, no longer than it is told to") {
  Program coordinator({"coordinator", "--listen", "127.0.0.1:0"});
  const std::string endpoint = coordinator.ReadLine().substr(6);
  const Arguments status = {"status", "--endpoint", endpoint, "--await-workers", "1"};
  Arguments soon = status;
  soon.insert(soon.end(), {"--await-s", "0"});
  const test::Outcome late = test::RunHere(soon);
  CHECK(late.code == 1);
  CHECK(absl::StrContains(late.err, "0 workers are ready after 0 s; expected 1"));
  Program waits(status);
  Program worker({"worker", "--coordinator", endpoint, "--backend", "cpu", "--threads", "1"});
  const test::Outcome there = waits.Wait();
  CHECK(there.code == 0);
  CHECK(absl::StrContains(there.out, " ready "));
}

TEST_CASE("status --watch may stand without a period, and is refused with a bad one") {
  CHECK(test::IsRefusal(test::RunHere({"status", "--endpoint", "127.0.0.1:1", "--watch", "0"})));
  const test::Outcome help = test::RunHere({"status", "--help"});
  CHECK(absl::StrContains(help.out, "--watch"));
}

}  // namespace
}  // namespace annulus
