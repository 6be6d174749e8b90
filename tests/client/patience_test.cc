// Calls that plan for long end with their caller's patience, and hold nobody else up.
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/client.h"
#include "tests/catch.h"
#include "tests/data/data_cluster.h"

namespace annulus {
namespace {

constexpr int64_t kTokens = 200'000;

// Seconds of planning, of 500 terms.
std::string Costly() {
  std::string text = "s2(1,1,1000)";
  for (int i = 1; i < 500; ++i) absl::StrAppend(&text, " | s2(1,1,", 1000 + i, ")");
  return text;
}

struct Long {
  explicit Long(Client& its_client) : client(its_client) {
    context = client.CreateContext({.heads = 1, .kv_heads = 1, .head_dim = 8, .v_head_dim = 8})
                  .value()
                  .id;
    REQUIRE(client.Append({.context = context, .k = Rows(kTokens), .v = Rows(kTokens)}).ok());
  }
  TensorView Rows(int64_t tokens) const {
    return TensorView::Contiguous(values.data(), DType::kF32, tokens, 1, 8);
  }
  absl::Status Attend(int64_t queries, const std::string& pattern, const CallOptions& call = {}) {
    return client
        .Attend({.context = context,
                 .q_start = kTokens - queries,
                 .kv_len = kTokens,
                 .q = Rows(queries),
                 .pattern = pattern},
                call)
        .status();
  }

  const std::vector<float> values = std::vector<float>(kTokens * 8, 0.5f);
  Client& client;
  ContextId context = 0;
};

void CheckPatience(Client& client) {
  Long one(client);
  std::atomic<bool> stop{false};
  absl::Duration worst;
  absl::Status others;
  std::thread other([&] {
    while (!stop) {
      const absl::Time begin = absl::Now();
      others.Update(one.Attend(1, "window(5)"));
      worst = std::max(worst, absl::Now() - begin);
      absl::SleepFor(absl::Milliseconds(5));
    }
  });
// Twice what is promised, since others use these cores too.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  constexpr absl::Duration kLate = absl::Milliseconds(500);  // instrumented programs are slower
#else
  constexpr absl::Duration kLate = absl::Milliseconds(100);
#endif
  absl::Time begin = absl::Now();
  CHECK(one.Attend(100'000, Costly(), {.timeout = absl::Milliseconds(300)}) ==
        absl::DeadlineExceededError("the call's deadline passed"));
  CHECK(absl::Now() - begin < absl::Milliseconds(300) + kLate);

  const CancelToken token = CancelToken::New();
  std::thread canceller([&] {
    absl::SleepFor(absl::Milliseconds(200));
    token.Cancel();
  });
  begin = absl::Now();
  CHECK(one.Attend(100'000, Costly(), {.cancel = token}) ==
        absl::CancelledError("the caller cancelled the call"));
  CHECK(absl::Now() - begin < absl::Milliseconds(200) + kLate);
  canceller.join();
  stop = true;
  other.join();
  CHECK(others.ok());
  CHECK(worst < absl::Milliseconds(250));
}

TEST_CASE("a call that plans for long ends with its deadline or its cancellation") {
  SECTION("in this process") {
    const auto client = Client::InProcess({.workers = 2, .backend = "cpu", .threads = 1}).value();
    CheckPatience(*client);
  }
  SECTION("over the network") {
    test::DataCluster cluster({.workers = 2});
    CheckPatience(cluster.client());
    // What was planned for a caller that is gone is planned no further.
    for (int i = 0; i < 100 && cluster.client().Status()->in_flight > 0; ++i) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    CHECK(cluster.client().Status()->in_flight == 0);
  }
}

}  // namespace
}  // namespace annulus
