// The client library's own part: retries, cancellation, asynchronous calls, the service in process.
#include "annulus/client.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/time/clock.h"
#include "annulus/retry_hint.h"
#include "base/rng.h"
#include "runtime/client/call_threads.h"
#include "runtime/client/cancel_watch.h"
#include "runtime/client/retry.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr RetryOptions kQuick{
    .attempts_max = 3, .backoff_min = absl::Milliseconds(2), .backoff_max = absl::Milliseconds(8)};

int Attempts(const absl::Status& status, Repeat repeat, RetryBudget* budget,
             absl::Time deadline = absl::InfiniteFuture(), const CancelToken& cancel = {}) {
  RetryLoop loop(budget, repeat, deadline, cancel);
  int attempts = 1;
  while (loop.Again(status)) ++attempts;
  return attempts;
}

TEST_CASE("what is tried again, by code") {
  RetryBudget budget({.attempts_max = 3,
                      .backoff_min = absl::Milliseconds(1),
                      .backoff_max = absl::Milliseconds(1),
                      .budget = 1000},
                     1);
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    CAPTURE(status);
    CHECK(Attempts(status, Repeat::kHarmless, &budget) == (absl::IsUnavailable(status) ? 3 : 1));
    CHECK(Attempts(status, Repeat::kTwice, &budget) == 1);
    const absl::Status hinted = WithRetryAfter(status, absl::Milliseconds(1));
    const bool refused = absl::IsResourceExhausted(status) || absl::IsUnauthenticated(status) ||
                         absl::IsUnavailable(status);
    CHECK(Attempts(hinted, Repeat::kTwice, &budget) == (refused ? 3 : 1));
  }
  CHECK(Attempts(absl::OkStatus(), Repeat::kHarmless, &budget) == 1);
}

TEST_CASE("a hint is waited for, a deadline is not passed, a cancellation ends the wait") {
  RetryBudget budget({.attempts_max = 2, .budget = 1000}, 1);
  const absl::Status full =
      WithRetryAfter(absl::ResourceExhaustedError("full"), absl::Milliseconds(150));
  absl::Time begin = absl::Now();
  CHECK(Attempts(full, Repeat::kTwice, &budget) == 2);
  CHECK(absl::Now() - begin >= absl::Milliseconds(150));

  begin = absl::Now();
  CHECK(Attempts(full, Repeat::kTwice, &budget, begin + absl::Milliseconds(100)) == 1);
  CHECK(absl::Now() - begin < absl::Milliseconds(100));

  const CancelToken token = CancelToken::New();
  std::thread canceller([&] {
    absl::SleepFor(absl::Milliseconds(30));
    token.Cancel();
  });
  begin = absl::Now();
  const absl::Status later = WithRetryAfter(absl::ResourceExhaustedError("full"), absl::Hours(1));
  CHECK(Attempts(later, Repeat::kTwice, &budget, absl::InfiniteFuture(), token) == 1);
  CHECK(absl::Now() - begin < absl::Seconds(5));
  canceller.join();
}

TEST_CASE("the budget bounds retries over all calls, and successes fill it again") {
  RetryOptions options = kQuick;
  options.budget = 3;
  RetryBudget budget(options, 1);
  const absl::Status down = absl::UnavailableError("down");
  CHECK(Attempts(down, Repeat::kHarmless, &budget) == 3);
  CHECK(Attempts(down, Repeat::kHarmless, &budget) == 2);
  CHECK(Attempts(down, Repeat::kHarmless, &budget) == 1);
  for (int i = 0; i < 10; ++i) Attempts(absl::OkStatus(), Repeat::kHarmless, &budget);
  CHECK(Attempts(down, Repeat::kHarmless, &budget) == 2);
}

TEST_CASE("the back-off grows, is spread, and stays within its bounds") {
  const uint64_t seed = 7;
  CAPTURE(seed);
  RetryBudget budget({.backoff_min = absl::Milliseconds(16), .backoff_max = absl::Milliseconds(64)},
                     seed);
  const int64_t whole_ms[] = {16, 32, 64, 64};
  for (int retry = 1; retry <= 4; ++retry) {
    absl::Duration least = absl::InfiniteDuration(), most;
    for (int i = 0; i < 200; ++i) {
      const absl::Duration wait = budget.Backoff(retry);
      least = std::min(least, wait);
      most = std::max(most, wait);
    }
    const absl::Duration whole = absl::Milliseconds(whole_ms[retry - 1]);
    CHECK(least >= whole / 2);
    CHECK(most <= whole);
    CHECK(most - least > whole / 4);
  }
}

TEST_CASE("a watch runs once, here or there, and never after its end") {
  std::atomic<int> runs{0};
  const CancelToken none;
  none.Cancel();
  CHECK_FALSE(none.cancelled());
  const CancelToken token = CancelToken::New();
  const CancelToken copy = token;
  {
    const CancelWatch gone(token, [&] { ++runs; });
  }
  const CancelWatch before(token, [&] { ++runs; });
  CHECK(runs == 0);
  copy.Cancel();
  copy.Cancel();
  CHECK(token.cancelled());
  CHECK(runs == 1);
  const CancelWatch after(token, [&] { ++runs; });
  CHECK(runs == 2);
}

TEST_CASE("asynchronous calls are bounded, run at once, and are waited for") {
  std::atomic<int> runs{0};
  {
    CallThreads threads(2);
    std::mutex gate;
    gate.lock();
    const auto job = [&] {
      const std::lock_guard<std::mutex> lock(gate);
      ++runs;
    };
    CHECK(threads.Run(job).ok());
    CHECK(threads.Run(job).ok());
    const absl::Status full = threads.Run(job);
    CHECK(absl::IsResourceExhausted(full));
    CHECK(full.message().find("async_calls_max: 2; ") == 0);
    gate.unlock();
    for (int i = 0; i < 1000 && runs < 2; ++i) absl::SleepFor(absl::Milliseconds(1));
    // A thread that has run its job counts it as over a moment later.
    absl::Status again;
    for (int i = 0; i < 1000; ++i) {
      again = threads.Run(job);
      if (again.ok()) break;
      absl::SleepFor(absl::Milliseconds(1));
    }
    CHECK(again.ok());
  }
  CHECK(runs == 3);
}

TEST_CASE("options that make no sense are refused by name") {
  const auto refused = [](const absl::Status& status, const char* text) {
    CAPTURE(status);
    CHECK(absl::IsInvalidArgument(status));
    CHECK(status.message().find(text) == 0);
  };
  refused(Client::InProcess({.workers = 0}).status(), "workers: 0");
  refused(Client::InProcess({.kv_bytes_limit = 0}).status(), "kv_bytes_limit: 0; ");
  refused(Client::InProcess({.async_calls_max = 0}).status(), "async_calls_max: 0");
  refused(Client::InProcess({.retry = {.attempts_max = 0}}).status(), "retry.attempts_max: 0");
  refused(Client::InProcess({.retry = {.backoff_min = absl::ZeroDuration()}}).status(),
          "retry.backoff_min: 0");
  refused(Client::InProcess({.retry = {.budget = -1}}).status(), "retry.budget: -1");
  CHECK_FALSE(Client::InProcess({.backend = "abacus"}).ok());
}

// A client with a service in this process, and one context of 2 heads of 8 with `tokens` of KV.
struct InProcess {
  explicit InProcess(int workers = 2) : client(Client::InProcess(Options(workers)).value()) {
    const ContextSpec spec{.layers = 2,
                           .heads = 2,
                           .kv_heads = 1,
                           .head_dim = 8,
                           .v_head_dim = 8,
                           .dtype = DType::kF32};
    context = client->CreateContext(spec).value().id;
    Rng rng(3);
    for (float& value : values) value = rng.Normal();
  }
  static InProcessOptions Options(int workers) {
    return {.workers = workers, .backend = "reference", .threads = 1};
  }
  TensorView Rows(int64_t first, int64_t tokens, int64_t heads) const {
    return TensorView::Contiguous(values.data() + first * 8, DType::kF32, tokens, heads, 8);
  }
  AppendRequest Kv(int64_t tokens) const {
    AppendRequest request;
    request.context = context;
    request.k = Rows(0, tokens, 1);
    request.v = Rows(3, tokens, 1);
    return request;
  }
  AttendRequest Query(int64_t kv_len) const {
    AttendRequest request;
    request.context = context;
    request.q_start = kv_len - 1;
    request.kv_len = kv_len;
    request.q = Rows(kv_len, 1, 2);
    return request;
  }

  std::vector<float> values = std::vector<float>(8 * 2000);
  std::unique_ptr<Client> client;
  ContextId context = 0;
};

TEST_CASE("a service in this process answers, and steps give what append and attend give") {
  InProcess one;
  REQUIRE(one.client->Append(one.Kv(300)).value().tokens == 300);
  const AttendResult attended = one.client->Attend(one.Query(300)).value();
  CHECK(one.client->connection() == ConnectionState::kReady);

  // The same, token by token on the other layer.
  for (int64_t t = 0; t < 300; ++t) {
    StepRequest step;
    step.context = one.context;
    step.layer = 1;
    step.start = t;
    step.k = one.Rows(t, 1, 1);
    step.v = one.Rows(3 + t, 1, 1);
    if (t == 299) step.q = one.Rows(300, 1, 2);
    StepResults results = one.client->Step({&step, 1});
    INFO(results[0].status());
    REQUIRE(results[0].ok());
    CHECK(results[0]->tokens == t + 1);
    if (t < 299) continue;
    for (int i = 0; i < 16; ++i) {
      CHECK(results[0]->out.f32()[i] == Approx(attended.out.f32()[i]).epsilon(1e-5));
    }
  }
  const auto contexts = one.client->List();
  REQUIRE(contexts.ok());
  REQUIRE(contexts->size() == 1);
  CHECK(contexts->front().tokens == std::vector<int64_t>{300, 300});
  CHECK(one.client->Status().value().workers.size() == 2);
  CHECK(one.client->Release(one.context).ok());
  CHECK(absl::IsNotFound(one.client->Describe(one.context).status()));
}

TEST_CASE("asynchronous calls complete exactly once, and may call again") {
  InProcess one(1);
  std::mutex mutex;
  std::condition_variable changed;
  int done = 0;
  absl::Status last;
  const auto finish = [&](const absl::Status& status) {
    const std::lock_guard<std::mutex> lock(mutex);
    ++done;
    last.Update(status);
    changed.notify_one();
  };
  const auto wait_for = [&](int count) {
    std::unique_lock<std::mutex> lock(mutex);
    return changed.wait_for(lock, std::chrono::seconds(20), [&] { return done == count; });
  };
  REQUIRE(one.client
              ->AppendAsync(one.Kv(100), {},
                            [&](absl::StatusOr<AppendResult> result) {
                              // A call from a completion, a blocking one.
                              if (result.ok()) last.Update(one.client->Status().status());
                              finish(result.status());
                            })
              .ok());
  REQUIRE(wait_for(1));
  for (int i = 0; i < 8; ++i) {
    REQUIRE(one.client
                ->AttendAsync(one.Query(100), {},
                              [&](absl::StatusOr<AttendResult> result) { finish(result.status()); })
                .ok());
  }
  REQUIRE(wait_for(9));
  StepRequest step;
  step.context = one.context;
  step.start = 100;
  step.q = one.Rows(0, 1, 2);
  REQUIRE(
      one.client->StepAsync({step}, {}, [&](StepResults results) { finish(results[0].status()); })
          .ok());
  REQUIRE(wait_for(10));
  INFO(last);
  CHECK(last.ok());
}

TEST_CASE("a cancelled token and a past deadline start nothing") {
  InProcess one(1);
  CallOptions cancelled;
  cancelled.cancel = CancelToken::New();
  cancelled.cancel.Cancel();
  CHECK(absl::IsCancelled(one.client->Append(one.Kv(10), cancelled).status()));
  CHECK(absl::IsDeadlineExceeded(
      one.client->Append(one.Kv(10), {.timeout = absl::ZeroDuration()}).status()));
  std::vector<StepRequest> steps(2);
  steps[1].layer = 1;
  CHECK(absl::IsCancelled(one.client->Step(steps, cancelled)[1].status()));
  CHECK(one.client->Describe(one.context).value().tokens[0] == 0);
}

TEST_CASE("the same key twice appends once") {
  InProcess one(2);
  AppendRequest request = one.Kv(70);
  request.key = {.client = 12, .sequence = 34};
  CHECK(one.client->Append(request).value().tokens == 70);
  CHECK(one.client->Append(request).value().tokens == 70);
  CHECK(one.client->Describe(one.context).value().tokens[0] == 70);
  request.key.sequence = 35;
  CHECK_FALSE(one.client->Append(request).ok());  // start is no longer the committed tokens
}

}  // namespace
}  // namespace annulus
