// A worker of a running cluster is killed while many callers wait for answers: each of them gets
// the right answer or an error, soon, and the survivors take new contexts.
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/kv_view.h"
#include "attention/reference/reference.h"
#include "base/rng.h"
#include "runtime/client/client.h"
#include "tests/catch.h"
#include "tests/cli/program.h"

namespace annulus {
namespace {

constexpr int kCallers = 4;
constexpr int kAnswersBefore = 500;  // the load before the fault
constexpr int kAnswersInAll = 1000;
constexpr int64_t kTokens = 1000;
constexpr int kHeads = 4, kKvHeads = 2, kDim = 32;

Tensor RandomTensor(Rng& rng, int64_t tokens, int64_t heads) {
  Tensor tensor(DType::kF32, tokens, heads, kDim);
  for (int64_t i = 0; i < tokens * heads * kDim; ++i) tensor.f32()[i] = rng.Normal();
  return tensor;
}

// One context and one query with its float64 answer.
struct Question {
  explicit Question(Rng& rng)
      : q(RandomTensor(rng, 1, kHeads)),
        k(RandomTensor(rng, kTokens, kKvHeads)),
        v(RandomTensor(rng, kTokens, kKvHeads)) {
    const KvTable pages = KvTable::FromTensors(k, v);
    const Pattern pattern = *Pattern::Parse("causal", kKvHeads);
    for (int h = 0; h < kHeads; ++h) {
      expected.push_back(*ReferenceRow(q.view().Row(0, h), DType::kF32, pages, kTokens, pattern,
                                       h / (kHeads / kKvHeads), kTokens - 1,
                                       1.0f / std::sqrt(float{kDim})));
    }
  }

  bool IsRight(const AttendResult& answer) const {
    for (int h = 0; h < kHeads; ++h) {
      const ReferenceAnswer& want = expected[static_cast<size_t>(h)];
      if (!(std::abs(answer.lse.f32()[h] - want.lse) < 1e-5)) return false;
      for (int d = 0; d < kDim; ++d) {
        const double got = answer.out.f32()[h * kDim + d];
        if (!(std::abs(got - want.out[static_cast<size_t>(d)]) < 1e-5)) return false;
      }
    }
    return true;
  }

  absl::StatusOr<ContextId> Upload(Client& client) const {
    ContextSpec spec;
    spec.heads = kHeads;
    spec.kv_heads = kKvHeads;
    spec.head_dim = spec.v_head_dim = kDim;
    spec.dtype = DType::kF32;
    spec.partition.unit_blocks = 1;
    const absl::StatusOr<ContextInfo> context = client.CreateContext(spec);
    if (!context.ok()) return context.status();
    const absl::StatusOr<AppendResult> appended =
        client.Append({.context = context->id, .k = k, .v = v});
    if (!appended.ok()) return appended.status();
    return context->id;
  }

  Tensor q, k, v;
  std::vector<ReferenceAnswer> expected;
};

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

// Attends until all callers together have their answers; after an error on a fresh context.
void Call(Client& client, const Question& question, int caller, Tally& tally) {
  absl::StatusOr<ContextId> context = question.Upload(client);
  for (int i = 0; tally.right + tally.wrong < kAnswersInAll && tally.errors < 100; ++i) {
    if (!context.ok()) {
      ++tally.errors;
      context = question.Upload(client);
      continue;
    }
    AttendRequest request;
    request.context = *context;
    request.q_start = kTokens - 1;
    request.kv_len = kTokens;
    request.q = question.q;
    request.plan = (i + caller) % 2 == 0 ? PlanKind::kPassQ : PlanKind::kGroupCast;
    const absl::StatusOr<AttendResult> answer = client.Attend(request);
    if (answer.ok()) {
      ++(question.IsRight(*answer) ? tally.right : tally.wrong);
    } else {
      ++tally.errors;
      NoteError(tally);
      context = question.Upload(client);
    }
  }
}

}  // namespace

TEST_CASE("a worker killed under load: right answers or errors at once, then the survivors serve") {
  test::Program up({"up", "--workers", "4", "--json"});
  const nlohmann::json ready = nlohmann::json::parse(up.ReadLine());
  const std::string endpoint = ready["endpoint"];
  const auto client = Client::Connect({.endpoint = endpoint});
  REQUIRE(client.ok());

  Rng rng(4);
  const Question question(rng);
  Tally tally;
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; ++c) {
    callers.emplace_back([&, c] { Call(**client, question, c, tally); });
  }
  while (tally.right + tally.wrong < kAnswersBefore && tally.errors < 100) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  const int before = tally.right;
  const absl::Time killed = absl::Now();
  tally.killed_ns = absl::ToUnixNanos(killed);
  kill(ready["worker_pids"][1].get<pid_t>(), SIGKILL);

  // A new context is placed on the survivors and answers.
  absl::StatusOr<ContextId> fresh = absl::UnavailableError("not tried");
  bool lost = false;
  while (absl::Now() - killed < absl::Seconds(10) && !(lost && fresh.ok())) {
    const absl::StatusOr<ClusterStatus> status = (*client)->Status();
    REQUIRE(status.ok());
    lost = std::any_of(status->workers.begin(), status->workers.end(),
                       [](const WorkerStatus& worker) { return worker.state == "lost"; });
    if (lost) fresh = question.Upload(**client);
  }
  const absl::Duration served_again = absl::Now() - killed;
  for (std::thread& caller : callers) caller.join();

  const absl::Duration last_error = absl::Nanoseconds(tally.last_error_ns.load());
  INFO(before << " answers before the kill, " << tally.right << " right, " << tally.wrong
              << " wrong, " << tally.errors << " errors in all; the last error "
              << absl::FormatDuration(last_error) << " after the kill, a new context "
              << absl::FormatDuration(served_again) << " after it");
  CHECK(before >= kAnswersBefore);
  CHECK(tally.wrong == 0);
  CHECK(tally.right >= kAnswersInAll);
  CHECK(tally.errors > 0);
  CHECK(last_error < absl::Milliseconds(500));
  CHECK(fresh.ok());
  CHECK(served_again < absl::Seconds(2));
  up.Signal(SIGTERM);
  CHECK(up.Wait().code == 0);
}

}  // namespace annulus
