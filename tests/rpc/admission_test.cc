// Calls that wait for a slot, and what calls cost beside each other.
#include <atomic>
#include <cmath>
#include <map>
#include <numeric>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "annulus/retry_hint.h"
#include "runtime/server/admission.h"
#include "runtime/server/call_cost.h"
#include "tests/catch.h"

namespace annulus {
namespace {

absl::Time Soon(int64_t ms) {
  return absl::Now() + absl::Milliseconds(ms);
}

TEST_CASE("a call waits for its turn, and has it as soon as a slot is free") {
  Admission admission({.in_flight_max = 2});
  Admission::Peer a(&admission, "a");
  Admission::Peer b(&admission, "b");
  Admission::Ticket first(&a);
  Admission::Ticket second(&a);
  REQUIRE(first.Enter({}).ok());
  std::atomic<bool> entered{false};
  std::thread waits([&] {
    CHECK(second.Enter({}).ok());  // one peer has half
    entered = true;
    second.Leave();
  });
  absl::SleepFor(absl::Milliseconds(30));
  CHECK(!entered);
  Admission::Ticket other(&b);
  CHECK(other.Enter({}).ok());  // whoever waits has its half
  CHECK(!entered);
  CHECK(admission.Waiting() == std::map<std::string, int64_t>{{"a", 1}});
  first.Leave();
  waits.join();
  CHECK(admission.Waiting().empty());
  const Histogram::Reading waited = admission.waits();
  CHECK(std::accumulate(waited.counts.begin(), waited.counts.end(), uint64_t{0}) == 3);
  CHECK(waited.sum > 0);  // the one, and the others nothing
  CHECK(entered);
}

TEST_CASE("a call that cannot have its turn in time is refused, and its bound named") {
  Admission admission({.in_flight_max = 1});
  Admission::Peer a(&admission, "a");
  Admission::Peer b(&admission, "b");
  Admission::Ticket holds(&a);
  REQUIRE(holds.Enter({}).ok());
  Admission::Ticket late(&b);
  const absl::Time begin = absl::Now();
  const absl::Status refused = late.Enter({.deadline = begin - absl::Seconds(1)});
  CHECK(absl::IsResourceExhausted(refused));
  CHECK(absl::StrContains(refused.message(), "in_flight_max: 1; "));
  CHECK(RetryAfter(refused).has_value());
  CHECK(absl::IsResourceExhausted(late.CheckTurn({.deadline = begin - absl::Seconds(1)})));
  CHECK(late.CheckTurn({}).ok());  // it may wait
  CHECK(absl::IsResourceExhausted(late.Enter({.deadline = Soon(30)})));
  // The queue is as long as there are slots.
  std::thread waits([&] {
    Admission::Ticket waiting(&a);
    CHECK(waiting.Enter({}).ok());
  });
  while (late.CheckTurn({}).ok()) absl::SleepFor(absl::Milliseconds(1));
  CHECK(absl::IsResourceExhausted(late.Enter({})));
  holds.Leave();
  waits.join();
  CHECK(late.Enter({}).ok());
}

AttendRequest Ask(int64_t tokens, int64_t kv_len) {
  AttendRequest request;
  request.q = TensorView::Contiguous(nullptr, DType::kF32, tokens, 8, 128);
  request.kv_len = kv_len;
  return request;
}

TEST_CASE("calls cost what they compute, as far as is known") {
  const double dense = CostOf(Ask(1024, 1 << 16), {});
  CHECK(dense == Approx(10 + 2 * 1024.0 * 8 * (1 << 16) * 128 / 1e6));
  CHECK(CostOf(Ask(1024, 1 << 16), {.work_pairs = 1'000'000}) == Approx(10 + 256));
  // The keys are read for one query, too.
  CHECK(CostOf(Ask(1, 1 << 16), {}) == CostOf(Ask(16, 1 << 16), {}));
  AttendRequest part = Ask(1024, 1 << 16);
  part.keys_begin = 1 << 15;
  CHECK(CostOf(part, {}) == Approx(10 + (dense - 10) / 2));
  StepRequest step;
  step.q = TensorView::Contiguous(nullptr, DType::kF32, 1, 8, 128);
  step.start = 1 << 16;
  CHECK(CostOf(std::vector<StepRequest>{step}) == CostOf(Ask(1, 1 << 16), {}));
  CHECK(CostOf(std::vector<StepRequest>{step, step}) > CostOf(std::vector<StepRequest>{step}));
  AppendRequest append;
  append.k = append.v = TensorView::Contiguous(nullptr, DType::kF32, 1000, 8, 128);
  CHECK(CostOf(append, {}) > 10);
  // Whatever a header says.
  for (const int64_t wild : {INT64_MIN, int64_t{-1}, int64_t{0}, INT64_MAX}) {
    AttendRequest request = Ask(1, wild);
    request.q.tokens = request.q.heads = request.q.dim = wild;
    request.keys_begin = wild;
    request.keys_end = wild;
    CHECK(CostOf(request, {}) >= 10);
    CHECK(std::isfinite(CostOf(request, {})));
    step.start = step.k.tokens = wild;
    CHECK(CostOf(std::vector<StepRequest>{step}) >= 10);
  }
}

}  // namespace
}  // namespace annulus
