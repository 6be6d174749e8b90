// Tenants that together want ten times what a server can do: each gets its share, and refusals come
// at once. ANNULUS_OVERLOAD_S: for how long, instead of 2 s.
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/retry_hint.h"
#include "runtime/protocol/public/convert.h"
#include "tests/reliability.h"
#include "tests/rpc/guarded.h"
#include "tests/rpc/raw_server.h"

namespace annulus {
namespace {

constexpr int kSlots = 8;
constexpr absl::Duration kCallTime = absl::Milliseconds(40);

// A server whose calls take their time, and tenants "t0", "t1", … who have these as tokens.
struct Tenants {
  explicit Tenants(int count) : guarded(RpcLimits{.in_flight_max = kSlots}) {
    SilenceLibraries();
    std::string entries;
    for (int i = 0; i < count; ++i) {
      absl::StrAppend(&entries, i > 0 ? "," : "", TokenEntry(absl::StrCat("t", i), "tenant"));
    }
    guarded.Know(entries);
    REQUIRE(guarded.authenticator->Reload().ok());
    guarded.service.before = [](const char*, const CallContext&) {
      absl::SleepFor(kCallTime);
      return absl::OkStatus();
    };
  }
  Guarded guarded;
};

struct Outcome {
  std::vector<int64_t> good;  // by tenant
  std::vector<double> refused_ms;
  bool named = true;  // every refusal names its bound and says when to come again

  int64_t sum() const {
    int64_t sum = 0;
    for (const int64_t calls : good) sum += calls;
    return sum;
  }
  double refused_p99_ms() {
    if (refused_ms.empty()) return 0;
    std::sort(refused_ms.begin(), refused_ms.end());
    return refused_ms[refused_ms.size() * 99 / 100];
  }
  double jain() const {
    double squares = 0;
    for (const int64_t calls : good) squares += static_cast<double>(calls * calls);
    const auto all = static_cast<double>(sum());
    return all * all / (static_cast<double>(good.size()) * squares);
  }
};

// So many callers of each tenant call over and over again, and come back when they are told to.
Outcome Run(const Tenants& tenants, const std::vector<int>& callers, absl::Duration time) {
  Outcome outcome;
  outcome.good.resize(callers.size());
  std::mutex mutex;
  std::vector<std::thread> threads;
  const absl::Time end = absl::Now() + time;
  for (size_t tenant = 0; tenant < callers.size(); ++tenant) {
    for (int i = 0; i < callers[tenant]; ++i) {
      threads.emplace_back([&, tenant] {
        const auto stub = v1::Annulus::NewStub(MakeChannel(tenants.guarded.endpoint()));
        while (absl::Now() < end) {
          const absl::Time begin = absl::Now();
          grpc::ClientContext context;
          context.AddMetadata(kAuthorizationKey, absl::StrCat("Bearer t", tenant));
          const absl::Status status =
              FromGrpc(AttendBy(*stub, &context, {Header("f32", 1, 1, 1), Data(4)}));
          const absl::Duration took = absl::Now() - begin;
          const auto wait = RetryAfter(status);
          {
            const std::lock_guard<std::mutex> lock(mutex);
            if (status.ok()) {
              ++outcome.good[tenant];
              continue;
            }
            outcome.refused_ms.push_back(absl::ToDoubleMilliseconds(took));
            outcome.named &= absl::IsResourceExhausted(status) && wait.has_value() &&
                             absl::StrContains(status.message(), "in_flight_max");
          }
          absl::SleepFor(wait.value_or(absl::ZeroDuration()));
        }
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
  return outcome;
}

absl::Duration OverloadTime() {
  return absl::Seconds(static_cast<int64_t>(test::NumberFromEnvironment("ANNULUS_OVERLOAD_S", 2)));
}

TEST_CASE("eight tenants that want ten times too much are served alike, and refusals are fast") {
  const absl::Duration time = OverloadTime();
  const Tenants tenants(8);
  const Outcome peak = Run(tenants, std::vector<int>(8, 1), std::min(time, absl::Seconds(10)));
  const double peak_per_s =
      static_cast<double>(peak.sum()) / absl::ToDoubleSeconds(std::min(time, absl::Seconds(10)));
  const int before = tenants.guarded.service.calls;
  Outcome over = Run(tenants, std::vector<int>(8, 10), time);
  const int served = tenants.guarded.service.calls - before;
  const double good_per_s = static_cast<double>(over.sum()) / absl::ToDoubleSeconds(time);
  const double apart = std::abs(static_cast<double>(served - over.sum())) / served;
  test::Tell(
      {.number = 8,
       .fault = "10x overload by eight tenants",
       .load = absl::StrCat("80 callers, ", kSlots, " places, calls of ",
                            absl::FormatDuration(kCallTime), ", ", absl::FormatDuration(time)),
       .bar = "goodput >= 90 % of peak; reject p99 <= 20 ms; Jain >= 0.95; counts within 1 %",
       .figure = absl::StrCat("goodput ", good_per_s / peak_per_s, " of peak, ",
                              over.refused_ms.size(), " refused, p99 ", over.refused_p99_ms(),
                              " ms, Jain ", over.jain(), ", counts ", 100 * apart, " % apart"),
       .met = good_per_s >= 0.9 * peak_per_s && over.refused_p99_ms() <= 20 &&
              over.jain() >= 0.95 && apart <= 0.01});
  CHECK(over.named);
  CHECK(static_cast<int64_t>(over.refused_ms.size()) > over.sum());
  CHECK(apart <= 0.01);
  // The bars are the table's: others may be using this machine.
  CHECK(over.jain() >= 0.9);
  CHECK(good_per_s >= 0.5 * peak_per_s);
}

TEST_CASE("a tenant that floods leaves others their share of a server") {
  const absl::Duration time = OverloadTime();
  const Tenants tenants(2);
  // Alone it may have half of the places.
  const Outcome alone = Run(tenants, {kSlots / 2, 0}, std::min(time, absl::Seconds(10)));
  const double share_per_s =
      static_cast<double>(alone.good[0]) / absl::ToDoubleSeconds(std::min(time, absl::Seconds(10)));
  const Outcome beside = Run(tenants, {kSlots / 2, 60}, time);
  const double had_per_s = static_cast<double>(beside.good[0]) / absl::ToDoubleSeconds(time);
  test::Tell({.number = 8,
              .fault = "one tenant floods",
              .load = absl::StrCat("60 callers beside ", kSlots / 2, ", ", kSlots, " places, ",
                                   absl::FormatDuration(time)),
              .bar = "the other has >= 95 % of its share",
              .figure = absl::StrCat(100 * had_per_s / share_per_s, " %"),
              .met = had_per_s >= 0.95 * share_per_s});
  CHECK(beside.good[1] > 0);
  CHECK(had_per_s >= 0.5 * share_per_s);
}

}  // namespace
}  // namespace annulus
